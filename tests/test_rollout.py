"""The sampler: its log-probabilities, its distribution, its ends, its independence of devices."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from morejax.decoding import decode_replies
from morejax.models import CriticConfig, merge, split
from morejax.models.response import response_hidden, response_values
from morejax.rollout import Sample, SamplerConfig, draw, read_prompts, sample, token_logp, uniform_numbers
from morejax.sharding import make_mesh, rollout_sharding

ROWS, CONTEXT, STEPS, EOS, PAD = 16, 6, 7, 1, 0
END_BIAS = 4.0  # added to the logit of the end token: rows then end at all lengths


@pytest.fixture(scope="module")
def prompts():
    """Left-padded prompts of 2 to 6 tokens."""
    rng = np.random.default_rng(1)
    mask = np.arange(CONTEXT)[None] >= CONTEXT - rng.integers(2, CONTEXT + 1, ROWS)[:, None]
    return np.where(mask, rng.integers(2, 12, (ROWS, CONTEXT)), PAD).astype(np.int32), mask


@pytest.fixture(scope="module")
def sampler(core, prompts):
    """Samplers of a tiny model with 12 tokens, so that the end comes at all lengths; compiled once a setting."""

    @cache
    def build(dtype="float32", critic="own", scan=True, shift=False, **settings):
        shape = {"vocab_size": 12, "dtype": dtype, "scan": scan, "shift": shift}
        model = core.model(critic=CriticConfig(critic, 1, 8, 2, 8), **shape)
        graphdef, params = split(model)
        trunk = params["trunk"]
        trunk["embedding"] = 4.0 * trunk["embedding"]  # sharp enough that drawing at random would show
        end = trunk["embedding"][EOS]
        trunk["final_norm"]["bias"] += END_BIAS * end / (end @ end)
        config = SamplerConfig(max_new_tokens=STEPS, eos_id=EOS, pad_id=PAD, **settings)

        def run(params, tokens, mask, key):
            return sample(graphdef, params, tokens, mask, key, config)

        run = jax.jit(run, compiler_options=core.fast_compile())
        return SimpleNamespace(
            graphdef=graphdef, params=params, run=run, drawn=run(params, *prompts, jax.random.key(0)), config=config
        )

    return build


def teacher_forced(core, sampler, prompts):
    """Logits f32[S, T, V] and values f32[S, T, H] at the drawn tokens, by one forward pass over everything."""
    tokens = np.concatenate([prompts[0], sampler.drawn.tokens], axis=1)
    mask = np.concatenate([prompts[1], sampler.drawn.mask], axis=1)

    def forward(params):
        model = merge(sampler.graphdef, params)
        hidden, predicting = response_hidden(model, tokens, mask, CONTEXT)
        return model.logits(predicting), response_values(model, tokens, mask, hidden, CONTEXT)

    return jax.jit(forward, compiler_options=core.fast_compile())(sampler.params)


def test_log_probabilities_are_the_teacher_forced_ones(core, sampler, prompts):
    drawn = sampler().drawn
    lengths = drawn.mask.sum(1)
    assert len(set(lengths.tolist())) >= 4  # rows end at different times
    logits, _ = teacher_forced(core, sampler(), prompts)
    logp = token_logp(jax.nn.log_softmax(logits), drawn.tokens)
    np.testing.assert_allclose(drawn.logp, jnp.where(drawn.mask, logp, 0.0), atol=1e-5)


def test_log_probabilities_are_those_of_the_tempered_distribution(core, sampler, prompts):
    warm = sampler(temperature=1.7)
    logits, _ = teacher_forced(core, warm, prompts)
    logp = token_logp(jax.nn.log_softmax(logits / 1.7), warm.drawn.tokens)
    np.testing.assert_allclose(warm.drawn.logp, jnp.where(warm.drawn.mask, logp, 0.0), atol=1e-5)


def test_bfloat16_log_probabilities_stay_within_their_rounding(core, sampler, prompts):
    """8 bits: token by token and all at once differ by rounding alone; the mean ratio stays within 1 %."""
    rough = sampler(dtype="bfloat16")
    logits, _ = teacher_forced(core, rough, prompts)
    logp = np.asarray(token_logp(jax.nn.log_softmax(logits), rough.drawn.tokens))[rough.drawn.mask]
    difference = np.asarray(rough.drawn.logp)[rough.drawn.mask] - logp
    assert rough.drawn.logp.dtype == np.float32
    assert np.abs(difference).max() < 0.05
    assert abs(np.exp(difference).mean() - 1) < 0.01


def test_nothing_comes_after_the_end(sampler):
    tokens, mask, logp = map(np.asarray, sampler().drawn[:3])
    for row in range(ROWS):
        length = mask[row].sum()
        assert mask[row, :length].all()
        assert (tokens[row, length:] == PAD).all()
        assert (logp[row, length:] == 0).all()
        assert EOS not in tokens[row, : length - 1]
        assert tokens[row, length - 1] == EOS or length == STEPS
    assert (mask.sum(1) < STEPS).any()
    assert (mask.sum(1) == STEPS).any()


@pytest.mark.parametrize("shape", [{}, {"shift": True}, {"shift": True, "scan": False}])
def test_greedy_is_the_argmax_of_repeated_full_forwards(core, sampler, prompts, shape):
    greedy = sampler(temperature=0.0, **shape)
    tokens = np.concatenate([prompts[0], np.zeros((ROWS, STEPS), np.int32)], axis=1)
    mask = np.concatenate([prompts[1], np.zeros((ROWS, STEPS), bool)], axis=1)

    @jax.jit
    def logits(params, tokens, mask):
        model = merge(greedy.graphdef, params)
        return model.logits(model.hidden(tokens, mask))

    running = np.ones(ROWS, bool)
    for step in range(STEPS):
        choice = np.asarray(logits(greedy.params, tokens, mask))[:, CONTEXT + step - 1].argmax(-1)
        tokens[:, CONTEXT + step] = np.where(running, choice, PAD)
        mask[:, CONTEXT + step] = running
        running &= choice != EOS
    np.testing.assert_array_equal(greedy.drawn.tokens, tokens[:, CONTEXT:])
    np.testing.assert_array_equal(greedy.drawn.mask, mask[:, CONTEXT:])


def test_unrolled_and_scanned_layers_draw_the_same(sampler):
    one, two = sampler(scan=True).drawn, sampler(scan=False).drawn
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.logp, two.logp, atol=1e-5)


def test_values_of_a_shared_critic_are_the_teacher_forced_ones(core, sampler, prompts):
    shared = sampler(critic="shared", values=True)
    _, values = teacher_forced(core, shared, prompts)
    valid = np.asarray(shared.drawn.mask)
    np.testing.assert_allclose(np.asarray(shared.drawn.values)[valid], np.asarray(values)[valid], atol=1e-5)


def test_values_of_a_critic_of_its_own_cannot_be_had_while_sampling(sampler):
    assert sampler().drawn.values is None
    with pytest.raises(ValueError, match=r"SamplerConfig\.values needs a model with critic\.kind = shared"):
        sampler(values=True)


def test_the_same_key_gives_the_same_text_on_any_number_of_devices(sampler, prompts):
    one = sampler()
    mesh = make_mesh(4, 2, 1)
    placed = jax.device_put(prompts, rollout_sharding(mesh))
    params = jax.device_put(one.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    many = one.run(params, *placed, jax.random.key(0))
    assert len(many.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(many.tokens, one.drawn.tokens)
    np.testing.assert_array_equal(many.mask, one.drawn.mask)
    np.testing.assert_allclose(many.logp, one.drawn.logp, atol=1e-5)


def test_another_key_gives_another_text(sampler, prompts):
    one = sampler()
    again, other = (one.run(one.params, *prompts, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again.tokens, one.drawn.tokens)
    assert (other.tokens != one.drawn.tokens).any()


def test_sampled_texts_follow_the_model(core, sampler):
    """Chi-square of the first two tokens of 20,000 replies to one prompt: p(y1) p(y2 | y1), independent over rows."""
    one, rows, vocab = sampler(), 20_000, 12
    prompt, mask = np.array([[5, 9]]), np.ones((1, 2), bool)
    config = SamplerConfig(max_new_tokens=2, eos_id=EOS, pad_id=PAD)

    def run(params):
        prompts = (jnp.broadcast_to(x, (rows, 2)) for x in (prompt, mask))
        model = merge(one.graphdef, params)
        pairs = jnp.concatenate([jnp.broadcast_to(prompt, (vocab, 2)), jnp.arange(vocab)[:, None]], axis=1)
        logps = jax.nn.log_softmax(model.logits(model.hidden(pairs, jnp.ones((vocab, 3), bool))))
        return sample(one.graphdef, params, *prompts, jax.random.key(0), config).tokens, logps

    drawn, logps = jax.jit(run, compiler_options=core.fast_compile())(one.params)
    drawn, logps = np.asarray(drawn), np.asarray(logps, np.float64)
    expected = np.exp(logps[0, 1])[:, None] * np.exp(logps[:, 2])
    expected[EOS] = np.exp(logps[0, 1, EOS]) * (np.arange(vocab) == PAD)  # padding follows the end
    counts = np.zeros((vocab, vocab))
    np.add.at(counts, tuple(drawn.T), 1)
    usual = expected * rows >= 5
    assert counts[expected == 0].sum() == 0
    tail = (counts[~usual].sum(), expected[~usual].sum() * rows)
    observed, wanted = np.append(counts[usual], tail[0]), np.append(expected[usual] * rows, tail[1])
    assert usual.sum() > 30
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_one_token_at_most(core, sampler, prompts):
    """T = 1: no decode at all, the prefill's distribution alone."""
    one = sampler()
    config = SamplerConfig(max_new_tokens=1, eos_id=EOS, pad_id=PAD)
    drawn = jax.eval_shape(
        lambda params: sample(one.graphdef, params, *map(jnp.asarray, prompts), jax.random.key(0), config), one.params
    )
    assert drawn == Sample(*(jax.ShapeDtypeStruct((ROWS, 1), t) for t in (jnp.int32, bool, jnp.float32)), None)


# ---- filters, samples, cache -------------------------------------------------------------------------------------

FILTERED = {"temperature": 1.3, "end_penalty": 0.8, "repetition_penalty": 1.4, "top_k": 6, "top_p": 0.9, "min_p": 0.02}


def test_both_log_probabilities_are_the_teacher_forced_ones(core, sampler, prompts):
    """The policy's own (tempered), and those of what was drawn from: penalties, temperature, top-k, top-p, min-p."""
    one = sampler(logp_drawn=True, **FILTERED)
    logits, _ = teacher_forced(core, one, prompts)
    tokens, valid = np.asarray(one.drawn.tokens), np.asarray(one.drawn.mask)
    logp = token_logp(jax.nn.log_softmax(logits / 1.3), one.drawn.tokens)
    np.testing.assert_allclose(one.drawn.logp, np.where(valid, logp, 0.0), atol=1e-5)
    expected = np.zeros(valid.shape)
    for row, step in zip(*np.nonzero(valid), strict=True):
        seen = np.union1d(prompts[0][row][prompts[1][row]], tokens[row, :step])
        scores = np.float64(logits[row, step])
        scores[EOS] -= 0.8
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / 1.4, scores[seen] * 1.4)
        expected[row, step] = filtered_logp(scores / 1.3)[tokens[row, step]]
    np.testing.assert_allclose(one.drawn.logp_drawn, expected, atol=1e-5)
    assert np.abs(expected - np.asarray(one.drawn.logp))[valid].max() > 0.1


def filtered_logp(scores):
    """Log-probabilities after top-k 6, top-p 0.9 and min-p 0.02, by sorting."""
    order = np.argsort(-scores)
    kept = order[:6]
    share = np.exp(scores[kept] - scores[kept].max())
    share /= share.sum()
    kept = kept[np.cumsum(share) - share < 0.9]
    kept = kept[scores[kept] >= scores.max() + np.log(0.02)]
    found = np.full(len(scores), -np.inf)
    found[kept] = scores[kept] - np.log(np.exp(scores[kept]).sum())
    return found


def test_with_filters_off_both_log_probabilities_agree(sampler):
    drawn = sampler(logp_drawn=True).drawn
    np.testing.assert_array_equal(drawn.logp_drawn, drawn.logp)
    assert sampler().drawn.logp_drawn is None
    np.testing.assert_array_equal(sampler().drawn.tokens, drawn.tokens)


def test_greedy_draws_from_one_token(core, sampler, prompts):
    """At temperature 0 the policy's log-probabilities are untempered, and what is drawn is certain."""
    greedy = sampler(temperature=0.0, logp_drawn=True)
    logits, _ = teacher_forced(core, greedy, prompts)
    logp = token_logp(jax.nn.log_softmax(logits), greedy.drawn.tokens)
    np.testing.assert_allclose(greedy.drawn.logp, jnp.where(greedy.drawn.mask, logp, 0.0), atol=1e-5)
    assert not np.asarray(greedy.drawn.logp_drawn).any()


def test_samples_of_a_prompt_are_those_of_the_prompt_repeated(core, sampler, prompts):
    """Three replies each from one prefill: the same rows as from prompts written three times, and they differ."""
    three = sampler(samples=3)
    repeated = sampler().run(three.params, *(np.repeat(part, 3, axis=0) for part in prompts), jax.random.key(0))
    np.testing.assert_array_equal(three.drawn.tokens, repeated.tokens)
    np.testing.assert_allclose(three.drawn.logp, repeated.logp, atol=1e-5)
    texts = np.asarray(three.drawn.tokens).reshape(ROWS, 3, STEPS)
    assert np.mean([len({tuple(text) for text in group}) == 3 for group in texts]) > 0.8


def test_samples_read_their_prompt_once(core, sampler, prompts):
    """The program of eight replies to two prompts prefills two rows."""
    one = sampler()
    config = SamplerConfig(max_new_tokens=2, samples=8)
    part = [x[:2] for x in prompts]
    program = jax.make_jaxpr(lambda p: sample(one.graphdef, p, *part, jax.random.key(0), config))(one.params)
    text = str(program)
    assert f"f32[2,{CONTEXT},16]" in text
    assert f"f32[16,{CONTEXT},16]" not in text
    assert "f32[16,1,16]" in text


def test_a_bfloat16_cache_stays_within_its_rounding(core, sampler, prompts):
    """Keys and values of 8 bits under a float32 model; log-probabilities within 0.05 of the exact ones."""
    rough = sampler(cache_dtype="bfloat16")
    logits, _ = teacher_forced(core, rough, prompts)
    logp = np.asarray(token_logp(jax.nn.log_softmax(logits), rough.drawn.tokens))[rough.drawn.mask]
    difference = np.abs(np.asarray(rough.drawn.logp)[rough.drawn.mask] - logp)
    assert 0 < difference.max() < 0.05


def test_filters_and_samples_give_the_same_text_on_any_number_of_devices(sampler, prompts):
    one = sampler(samples=2, logp_drawn=True, **FILTERED)
    mesh = make_mesh(4, 2, 1)
    placed = jax.device_put(prompts, rollout_sharding(mesh))
    params = jax.device_put(one.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    many = one.run(params, *placed, jax.random.key(0))
    assert len(many.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(many.tokens, one.drawn.tokens)
    np.testing.assert_allclose(many.logp_drawn, one.drawn.logp_drawn, atol=1e-5)


def test_the_loop_ends_when_all_rows_have_ended(core, sampler, prompts):
    """A model that always says the end token leaves the loop after one turn, whatever T is."""
    one = sampler()
    params = jax.tree.map(jnp.copy, one.params)
    end = params["trunk"]["embedding"][EOS]
    params["trunk"]["final_norm"]["bias"] += 1e3 * end / (end @ end)
    config = SamplerConfig(max_new_tokens=STEPS, eos_id=EOS)

    def run(params):
        model = merge(one.graphdef, params)
        read = read_prompts(model, *map(jnp.asarray, prompts), config)
        drawn, after, held = decode_replies(model, read, uniform_numbers(jax.random.key(0), ROWS, STEPS), config)
        return drawn.mask, after.slot, held

    mask, slot, held = jax.jit(run, compiler_options=core.fast_compile())(params)
    assert int(held) == 1
    assert int(slot) == CONTEXT + 1
    np.testing.assert_array_equal(mask.sum(1), 1)


# ---- draw --------------------------------------------------------------------------------------------------------


def counts_of(core, logits, uniform):
    """How often each token is drawn by these uniform numbers."""
    function = jax.jit(
        lambda u: draw(jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (len(u), len(logits))), u),
        compiler_options=core.fast_compile(),
    )
    drawn = np.concatenate([function(part) for part in np.split(uniform, max(1, len(uniform) // 10000))])
    assert drawn.min() >= 0
    assert drawn.max() < len(logits)
    return np.bincount(drawn, minlength=len(logits))


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


@pytest.mark.parametrize("vocab", [3, 64, 100, 1000])
def test_draws_follow_the_softmax(core, vocab):
    """Chi-square of 1e5 draws; sizes under, at, and off the multiples of a block."""
    rng = np.random.default_rng(vocab)
    logits = rng.normal(size=vocab)
    counts = counts_of(core, logits, np.asarray(jax.random.uniform(jax.random.key(vocab), (100_000,))))
    assert stats.chisquare(counts, softmax(logits) * counts.sum()).pvalue > 1e-3


def test_draw_inverts_the_distribution_function(core):
    """An even grid of uniforms gives every token its share, to one grid point at either end."""
    logits = 2.0 * np.random.default_rng(0).normal(size=150)
    grid = (np.arange(20_000) + 0.5) / 20_000
    counts = counts_of(core, logits, grid.astype(np.float32))
    assert np.abs(counts - softmax(logits) * 20_000).max() <= 2.0


@pytest.mark.parametrize("impossible", [-np.inf, -1e30, -200.0])
def test_an_impossible_token_is_never_drawn(core, impossible):
    """Whole blocks and single tokens without weight, at the start, between and at the end; all edges of [0, 1)."""
    logits = np.full(300, impossible)
    possible = np.r_[5, 6, 70:75, 200, 201, 250]
    logits[possible] = np.random.default_rng(0).normal(size=len(possible))
    edges = np.cumsum(softmax(logits)[possible])[:-1].astype(np.float32)
    near = np.concatenate([np.nextafter(edges, side, dtype=np.float32) for side in (0, 1)])
    grid = np.linspace(0, 1, 5000, endpoint=False, dtype=np.float32)
    uniform = np.concatenate([grid, edges, near, np.float32([0.0, np.nextafter(np.float32(1), np.float32(0))])])
    counts = counts_of(core, logits, uniform)
    assert set(np.flatnonzero(counts)) == set(possible)


def test_a_certain_token_is_always_drawn(core):
    logits = np.full(130, -np.inf)
    logits[129] = 3.0
    assert counts_of(core, logits, np.linspace(0, 1, 100, endpoint=False, dtype=np.float32))[129] == 100


def test_rows_draw_from_their_own_distributions():
    logits = np.full((3, 70), -np.inf, np.float32)
    logits[0, 0] = logits[1, 65] = logits[2, 69] = 0.0
    drawn = jax.jit(draw)(logits, np.float32([0.0, 0.5, 0.999]))
    np.testing.assert_array_equal(drawn, [0, 65, 69])
