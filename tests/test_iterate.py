"""A whole iteration in one program: the numbers of its parts, one compilation, no transfer, N iterations a call."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from morejax.iterate import (
    Frozen,
    Prompts,
    RewardContext,
    Rewards,
    compile_iteration,
    iterate,
    reference_logps,
)
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, merge, split
from morejax.rollout import Rollout, Sample, SamplerConfig, compile_sampler, token_logp
from morejax.sharding import make_mesh, rollout_sharding, state_shardings
from morejax.tasks.device_rewards import on_last_token

S, C, T, V = 8, 6, 5, 64
SAMPLER = SamplerConfig(max_new_tokens=T, eos_id=3)


def reward(tokens, mask, context: RewardContext) -> Rewards:
    """Three objectives and two constraints; one does not apply everywhere, one is dense, one reads the reference."""
    length = jnp.maximum(mask.sum(-1), 1)
    share = (mask & (tokens % 3 == 0)).sum(-1) / length
    likely = jnp.where(mask, context.logp_ref, 0.0).sum(-1) / length / 10.0
    wanted = (tokens % 4 == context.prompts.rewards[:, None] % 4) & mask
    small = jnp.where(mask & (tokens < context.frozen), 1.0 / T, 0.0)
    last = partial(on_last_token, mask=mask)
    objectives = jnp.stack([last(share), last(likely), small], axis=-1)
    constraints = jnp.stack([last(wanted.any(-1).astype(jnp.float32)), last(length / T)], axis=-1)
    applies = jnp.ones((*mask.shape[:1], 5), bool).at[:, 3].set(context.prompts.rewards > 20)
    return Rewards(objectives, constraints, applies)


def prompts(seed=0, many=(), **changes):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, C + 1, (*many, S))
    mask = np.arange(C) >= C - lengths[..., None]
    tokens = np.where(mask, rng.integers(4, V, (*many, S, C)), 0).astype(np.int32)
    return Prompts(tokens, mask, rewards=rng.integers(4, V, (*many, S)).astype(np.int32)).replace(**changes)


PLAIN_GRADIENT = optax.identity()
CRITICS = {kind: CriticConfig(kind=kind, layers=1, width=8, heads=2, hidden=8) for kind in ("shared", "own", "none")}


@pytest.fixture(scope="module")
def frozen():
    config = DecoderConfig(vocab_size=V, max_length=32, layers=1, width=16, heads=2, scan=True)
    graphdef, params = split(ActorCritic(config, rngs=nnx.Rngs(5)))
    return Frozen(jax.tree.map(lambda leaf: 3.0 * leaf, params), graphdef, rewards=jnp.int32(30))


@pytest.fixture
def make_state(core):
    def make(kind, config):
        model = core.model(len(config.streams), CRITICS[kind])
        if kind != "none":
            # Values that differ between positions: a fresh head gives zeros.
            model.value.head.outer.kernel[...] = 0.3 * jnp.ones_like(model.value.head.outer.kernel[...])
        # Adam makes whole steps of gradients that are 0 but for rounding; plain gradients keep small differences small.
        return core.state(config, core.numbers(learning_rate=0.1), model=model, tx=PLAIN_GRADIENT)

    return make


def one_program(core, config):
    """`iterate` jitted, in the way that compiles fastest."""
    return compile_iteration(reward, config, SAMPLER, donate=False, compiler_options=core.fast_compile())


def separately(core, state, asked, frozen, config):
    """The same iteration with every part compiled on its own and the arrays through the host in between."""
    key, sample_key = jax.random.split(state.key)
    shared = "value" in state.params and "trunk" not in state.params["value"]
    settings = SamplerConfig(max_new_tokens=T, eos_id=3, values=shared)
    said = jax.device_get(compile_sampler(state.graphdef, settings)(state.params, asked.tokens, asked.mask, sample_key))
    tokens, mask = np.concatenate([asked.tokens, said.tokens], 1), np.concatenate([asked.mask, said.mask], 1)

    @jax.jit
    def reference(params, tokens, mask):
        model = merge(frozen.graphdef, params)
        logps = jax.nn.log_softmax(model.logits(model.hidden(tokens, mask)[:, C - 1 : -1]))
        return token_logp(logps, tokens[:, C:]), logps

    @jax.jit
    def critic(params, tokens, mask):
        model = merge(state.graphdef, params)
        return model.values(tokens, mask, model.hidden(tokens, mask))[:, C - 1 : -1]

    logp_ref, ref_logps = jax.device_get(reference(frozen.params, tokens, mask))
    values = said.values
    if values is None and "value" in state.params:
        values = jax.device_get(critic(state.params, tokens, mask))
    judged = jax.device_get(jax.jit(reward)(said.tokens, said.mask, RewardContext(asked, frozen.rewards, logp_ref)))
    rollout = Rollout(
        tokens=tokens,
        context_mask=asked.mask,
        resp_mask=said.mask,
        logp_old=said.logp,
        values_old=values,
        objectives=judged.objectives,
        constraints=judged.constraints,
        applies=judged.applies,
        logp_ref=logp_ref,
        ref_logps=ref_logps if config.kl == "full" else None,
        group=asked.group,
    )
    return core.step(config)(state.replace(key=key), rollout)


def assert_same(left, right, atol):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), numbers_of(left), numbers_of(right)
    )


def numbers_of(tree):
    as_numbers = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(as_numbers(leaf), np.float64), tree)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("shared", {}), ("own", {"kl": "k3"}), ("none", {"baseline": "group_mean"})],
)
def test_one_program_gives_the_numbers_of_its_parts(core, make_state, frozen, kind, changes):
    config = core.config(**changes)
    asked = prompts(group=np.arange(S, dtype=np.int32) // 4 if kind == "none" else None)
    start = make_state(kind, config)
    state, metrics = one_program(core, config)(start, asked, frozen)
    other, wanted = separately(core, start, asked, frozen, config)
    assert 0 < float(metrics.pop("response_tokens")) <= S * T
    assert set(metrics) == set(wanted)
    # Sums in another order differ in the last digits.
    assert_same(state, other, atol=1e-6)
    assert_same(metrics, wanted, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, start.params)
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_it_compiles_once_donates_and_transfers_nothing(core, make_state, frozen):
    config = core.config()
    run = compile_iteration(reward, config, SAMPLER, compiler_options=core.fast_compile())
    state, on_device, still = jax.device_put((make_state("shared", config), prompts(), frozen))
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            before = state
            state, metrics = run(state, on_device, still)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert run._cache_size() == 1
    assert int(state.step) == 3
    assert np.isfinite(float(metrics["kl"]))


def test_many_iterations_in_one_call_are_the_single_ones(core, make_state, frozen):
    config = core.config()
    stacked = prompts(many=(3,))
    options = {"donate": False, "compiler_options": core.fast_compile()}
    run = compile_iteration(reward, config, SAMPLER, many=True, **options)
    together, history = run(make_state("shared", config), stacked, frozen)
    run = one_program(core, config)
    state, single = make_state("shared", config), []
    for index in range(3):
        state, metrics = run(state, jax.tree.map(lambda leaf, i=index: leaf[i], stacked), frozen)
        single.append(metrics)
    assert_same(together, state, atol=3e-6)
    for name in ("J/likeness", "kl", "multiplier/inform", "response_tokens"):
        np.testing.assert_allclose(history[name], [float(m[name]) for m in single], rtol=1e-4, atol=1e-5)
    assert int(together.step) == 3


def test_the_reference_may_read_a_context_of_its_own(core, make_state, frozen):
    config = core.config(kl="k3")
    asked = prompts()
    drawn = Sample(*padded_replies(), logp=jnp.zeros((S, T)))

    @jax.jit
    def logp(asked):
        return reference_logps(asked, frozen, drawn, config)[0]

    alone = logp(asked)
    # Two more tokens of padding on the left change nothing, two more real ones do.
    room = [(0, 0), (2, 0)]
    wider = np.pad(asked.tokens, room, constant_values=9)
    padding, real = (np.pad(asked.mask, room, constant_values=value) for value in (False, True))
    np.testing.assert_allclose(logp(asked.replace(ref_tokens=wider, ref_mask=padding)), alone, rtol=1e-5)
    assert np.abs(logp(asked.replace(ref_tokens=wider, ref_mask=real)) - alone).max() > 1e-3


def padded_replies():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, T + 1, S)
    return rng.integers(4, V, (S, T)).astype(np.int32), np.arange(T)[None] < lengths[:, None]


def test_a_mesh_of_devices_gives_the_numbers_of_one(core, make_state, frozen):
    config = core.config()
    start, asked = make_state("shared", config), prompts()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    options = {"donate": False, "compiler_options": core.fast_compile()}
    run = compile_iteration(reward, config, SAMPLER, mesh=mesh, state=start, **options)
    placed = jax.device_put(start, state_shardings(mesh, start)), jax.device_put(asked, rollout_sharding(mesh))
    state, metrics = run(*placed, frozen)
    other, wanted = one_program(core, config)(start, asked, frozen)
    assert_same(state, other, atol=1e-6)
    assert float(metrics["J/likeness"]) == pytest.approx(float(wanted["J/likeness"]), rel=1e-5)


def test_what_does_not_fit_is_refused(core, make_state, frozen):
    config = core.config()
    start = make_state("shared", config)
    with pytest.raises(ValueError, match=r"temperature is 0\.5, expected 1"):
        compile_iteration(reward, config, SamplerConfig(temperature=0.5))
    for changes, named in ({"top_p": 0.9}, r"top_p is 0\.9, expected 1"), ({"samples": 2}, r"samples is 2, expected 1"):
        with pytest.raises(ValueError, match=named):
            compile_iteration(reward, config, SamplerConfig(**changes))
    with pytest.raises(ValueError, match=r"step\.kl = full needs the parameters of a reference"):
        jax.eval_shape(
            lambda state: iterate(state, prompts(), frozen.replace(params=None), reward, config, SAMPLER), start
        )
    asked = prompts().replace(ref_tokens=np.zeros((S, C), np.int32))
    with pytest.raises(ValueError, match=r"needs Prompts\.ref_mask"):
        jax.eval_shape(lambda state: iterate(state, asked, frozen, reward, config, SAMPLER), start)
    with pytest.raises(ValueError, match="on a mesh needs the state"):
        compile_iteration(reward, config, SAMPLER, mesh=make_mesh(data=8))
