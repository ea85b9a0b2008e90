"""The PPO loop on a toy task: which dialogues, which rollout, what is kept, how it stops and goes on."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from itertools import islice
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from morejax.config import StepConfig, StepNumbers
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, RewardHead, split
from morejax.models.split import merge, whole
from morejax.rollout import Sample, token_logp
from morejax.sharding import make_mesh
from morejax.state import init_state
from morejax.tasks.streams import NonFiniteStream, StackedStreams
from morejax.training import ppo
from morejax.training.checkpoint import Checkpoints, load_params
from morejax.training.interrupt import Interrupted
from morejax.training.language_model import NonFinite
from morejax.training.late_log import LateLog, check_finite
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.ppo_config import PPOConfig
from morejax.training.ppo_loop import Watch
from morejax.training.rollouts import Frozen, Sampler, Shapes, build_rollout, plan, positions, static_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

STEP = StepConfig(objectives=("low",), constraints=("short",), minibatches=2)
SHAPES = Shapes(turns=8, context=4, reasoned=6, reply=3)
DECODER = DecoderConfig(vocab_size=64, max_length=16, layers=1, width=8, heads=2)


@dataclass(frozen=True)
class Prompt:
    """What the loop reads of a turn's prompts."""

    direct: tuple[int, ...]
    reasoned: tuple[int, ...]
    turn: int = 0


class Task:
    """Low tokens are good; replies should have one token. NaN at the n-th rollout, if asked for."""

    eos_id, pad_id = 1, 0

    def __init__(self, nan_at=None):
        self.rollouts, self.nan_at = 0, nan_at

    turn_by_turn = False

    def sampled(self, prompts, replies, lm_logp, natural):
        assert lm_logp.shape == natural.shape == (len(prompts),)
        return replies

    def rewards(self, replies, reply):
        self.rollouts += 1
        if self.rollouts == self.nan_at:
            raise NonFiniteStream("stream 'low': reward is nan for dialogue a, turn 0, expected finite values")
        scores = np.array([[np.mean([t < 32 for t in ids]), len(ids) == 1] for ids in replies], np.float32)
        rewards = np.zeros((len(replies), reply, 2), np.float32)
        rewards[np.arange(len(replies)), [len(ids) - 1 for ids in replies]] = scores
        ones = np.ones_like(scores)
        return StackedStreams(("low", "short"), rewards, ones.astype(bool), scores, ones)


def dialogues(sizes=(3, 2, 4, 2)):
    made = iter(range(2, 60))
    return [[Prompt((t := next(made), t + 1), (t, t + 1, 5, 6), turn) for turn in range(size)] for size in sizes]


@pytest.fixture(scope="module")
def models(core):
    critic = CriticConfig(kind="shared", hidden=4)
    graphdef, abstract = split(nnx.eval_shape(lambda: ActorCritic(DECODER, critic=critic, streams=2, rngs=nnx.Rngs(0))))
    params = core.random_params(abstract)
    frozen_graphdef, like = split(nnx.eval_shape(lambda: ActorCritic(DECODER, rngs=nnx.Rngs(0))))
    head_graphdef, head = split(nnx.eval_shape(lambda: RewardHead(8, hidden=4, rngs=nnx.Rngs(0))))
    reference, language_model, head = (
        core.random_params(tree, seed) for seed, tree in enumerate((like, like, head), 1)
    )
    return graphdef, params, Frozen(frozen_graphdef, reference, language_model, head_graphdef, head)


def fresh_state(models, numbers=None):
    graphdef, params, _ = models
    numbers = numbers or StepNumbers(thresholds={"short": 0.5}, learning_rate=0.01, warmup_steps=0)
    return init_state(merge(graphdef, jax.tree.map(jnp.copy, params)), STEP, numbers)


class Stop:
    """A stop request that the test makes."""

    number = signal.SIGTERM

    def __init__(self):
        self.asked = False

    def __bool__(self):
        return self.asked

    def raise_if_set(self):
        if self.asked:
            raise Interrupted(self.number)


def first_weight(params):
    return {"combined": float(jax.tree.leaves(params)[0].sum())}


LOOP = PPOConfig(iterations=5, turns=8, eval_every=2, checkpoint_every=3, keep="last")


def fit(models, folder, *, task=None, loop=LOOP, stop=None, evaluate=first_weight, numbers=None):
    return ppo.fit(
        task or Task(),
        fresh_state(models, numbers),
        models[2],
        dialogues(),
        STEP,
        loop,
        SHAPES,
        Watch(folder, Stop() if stop is None else stop, evaluate),
        seed=0,
    )


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


def final(models, folder):
    return load_params(folder / "checkpoints" / "ppo-final", models[1])


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints" / "ppo").iterdir())


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# Which dialogues


def test_a_plan_takes_every_dialogue_once_an_epoch():
    sizes = np.random.default_rng(0).integers(1, 9, 50)
    batches = plan(sizes, 16, seed=0)
    numbers = []
    while len(numbers) < 150:
        batch = next(batches)
        assert 0 < sum(sizes[number] for number in batch) <= 16
        numbers += batch
    for epoch in range(3):
        assert sorted(numbers[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert numbers[:50] != numbers[50:100]


def test_a_plan_is_filled_as_far_as_whole_dialogues_go():
    sizes = [5, 5, 5, 5]
    assert [len(batch) for batch in islice(plan(sizes, 12, seed=3), 4)] == [2, 2, 2, 2]


def test_a_plan_resumes_by_skipping():
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    whole = list(islice(plan(sizes, 10, seed=1), 12))
    assert list(islice(plan(sizes, 10, seed=1), 7, 12)) == whole[7:]
    assert list(islice(plan(sizes, 10, seed=2), 12)) != whole


def test_a_dialogue_too_long_for_a_rollout_is_refused():
    with pytest.raises(
        ValueError, match=r"--ppo.turns 8 does not hold the longest dialogue \(9 turns, --ppo.samples counted\)"
    ):
        next(plan([3, 9], 8, seed=0))


def test_positions_group_the_samples_of_a_turn():
    """Dialogue a (2 turns) sampled twice, b (1 turn) once, and one empty row."""
    a, b = SimpleNamespace(id="a"), SimpleNamespace(id="b")
    order = [(a, 0), (a, 1), (a, 0), (a, 1), (b, 0)]
    found = positions([SimpleNamespace(dialogue=one, turn=turn) for one, turn in order], 6)
    assert found["group"].tolist() == [0, 1, 0, 1, 4, 5]
    assert found["turn"].tolist() == [0, 1, 0, 1, 0, 0]
    dialogue = found["dialogue"].tolist()
    assert dialogue[0] == dialogue[1] != dialogue[2] == dialogue[3]
    assert len(set(dialogue)) == 4


def test_shapes_are_the_smallest_multiples_of_16_that_hold_all():
    prompts = [[Prompt((1,) * 17, (1,) * 32)], [Prompt((1,) * 3, (1,) * 33)]]
    assert static_shapes(prompts, 64, 24) == Shapes(64, 32, 48, 24)


# One rollout


def test_rows_beyond_the_prompts_are_empty():
    shapes = Shapes(turns=4, context=2, reasoned=2, reply=3)
    rng = np.random.default_rng(0)
    drawn = np.array([[7, 1, 0], [40, 50, 60], [8, 8, 1], [9, 9, 9]])
    sample = Sample(drawn, np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool), rng.normal(size=(4, 3)), None)
    context = np.array([[0, 5]] * 4)
    assessed = {
        "values": rng.normal(size=(4, 3, 2)),
        "logp_ref": rng.normal(size=(4, 3)),
        "ref_logps": rng.normal(size=(4, 3, 64)),
        "lm_logp": np.zeros(4),
        "natural": np.zeros(4),
    }
    tokens = np.concatenate([context, drawn], 1)
    rollout, count = build_rollout(
        Task(), dialogues()[0][:2], sample, tokens, tokens > 0, context > 0, assessed, STEP, shapes
    )
    assert count == 5
    assert rollout.resp_mask.astype(int).tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert rollout.objectives.shape == rollout.constraints.shape == (4, 3, 1)
    # 7 and 1 are low; the second reply is not. Rewards stand at the last token.
    assert rollout.objectives[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert rollout.applies.tolist() == [[True, True]] * 2 + [[False, False]] * 2
    assert rollout.scores.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert rollout.score_weights.tolist() == [[1, 1]] * 2 + [[0, 0]] * 2
    assert rollout.tokens.shape == (4, 5)
    assert rollout.ref_logps.shape == (4, 3, 64)


@pytest.mark.parametrize("ref_context", ["reasoned", "direct"])
def test_the_reference_reads_its_own_context(models, ref_context):
    _, params, frozen = models
    loop = replace(LOOP, ref_context=ref_context)
    sampler = Sampler(Task(), fresh_state(models), frozen, STEP, SHAPES, loop)
    prompts = dialogues()[0]
    rollout, count = sampler(params, prompts, jax.random.key(0))
    assert rollout.tokens.shape == (8, 7)
    assert count == rollout.resp_mask.sum()
    assert not rollout.resp_mask[len(prompts) :].any()
    # By hand: the first reply after the prompt that the reference is to read.
    reply = tuple(rollout.tokens[0, 4:][rollout.resp_mask[0]].tolist())
    prompt = getattr(prompts[0], ref_context)
    tokens = np.array([prompt + reply])

    @jax.jit
    def log_probabilities(reference, tokens):
        model = merge(frozen.graphdef, reference)
        return jax.nn.log_softmax(model.logits(model.hidden(tokens, tokens > 0)))

    logps = log_probabilities(frozen.reference, tokens)
    expected = token_logp(logps[0, len(prompt) - 1 : -1], np.array(reply))
    np.testing.assert_allclose(rollout.logp_ref[0][: len(reply)], expected, rtol=2e-4)
    np.testing.assert_allclose(
        token_logp(rollout.ref_logps, rollout.tokens[:, 4:])[rollout.resp_mask],
        rollout.logp_ref[rollout.resp_mask],
        rtol=1e-5,
    )


# The loop


class TurnByTurn(Task):
    """The prompt of a turn begins with the first token of the reply before it."""

    turn_by_turn = True

    def prompts_after(self, prompts, said):
        old = prompts[len(said)]
        return replace(old, direct=(*(ids[0] for ids in said[-1:]), *old.direct)) if said else old


def test_turn_by_turn_each_reply_is_drawn_from_what_its_row_shows(models):
    """Whatever the blocks: the probabilities of a row are those of its tokens after its context."""
    graphdef, params, frozen = models
    prompts = [*dialogues()[0], *dialogues()[1]]
    sampler = Sampler(TurnByTurn(), fresh_state(models), frozen, STEP, SHAPES, LOOP)
    rollout, count = sampler(params, prompts, jax.random.key(3))
    assert count == rollout.resp_mask.sum()
    assert not rollout.resp_mask[len(prompts) :].any()

    @jax.jit
    def log_probabilities(params, tokens, mask):
        model = merge(graphdef, params)
        return jax.nn.log_softmax(model.logits(model.hidden(tokens, mask)))

    logps = log_probabilities(params, rollout.tokens, rollout.mask)[:, 3:-1]
    expected = token_logp(logps, rollout.tokens[:, 4:])
    np.testing.assert_allclose(rollout.logp_old[rollout.resp_mask], expected[rollout.resp_mask], rtol=2e-4, atol=1e-6)
    for row, prompt in enumerate(prompts):
        context = rollout.tokens[row, :4][rollout.context_mask[row]].tolist()
        before = [int(rollout.tokens[row - 1, 4])] if prompt.turn else []
        assert context == before + list(prompt.direct)


@pytest.mark.parametrize("shards", [2, 3])
def test_turn_by_turn_a_mesh_draws_what_one_device_draws(models, shards):
    """Also where blocks have to be filled up to be cut."""
    *_, frozen = models
    prompts, shapes = [*dialogues()[0], *dialogues()[1]], replace(SHAPES, turns=12)
    drawn = []
    for placement in (ONE_DEVICE, Placement(make_mesh(data=shards, devices=jax.devices()[:shards]))):
        state = placement.state(fresh_state(models))
        sampler = Sampler(TurnByTurn(), state, frozen, STEP, shapes, LOOP, placement)
        rollout, _ = sampler(whole(state.graphdef, state.params), prompts, jax.random.key(3))
        drawn.append(jax.tree.map(np.asarray, rollout))
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)
    np.testing.assert_array_equal(drawn[0].objectives, drawn[1].objectives)
    mask = drawn[0].resp_mask
    for name in ("logp_old", "values_old", "logp_ref"):
        left, right = (getattr(one, name)[mask] for one in drawn)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fit(models, folder)


def test_a_loop_logs_evaluates_and_saves(models, undisturbed):
    folder, progress = undisturbed
    lines = logged(folder)
    assert [line["step"] for line in lines if "J/low" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval/combined" in line] == [0, 2, 4, 5]
    assert kept(folder) == [3, 5]
    params, meta = final(models, folder)
    assert meta == {"iteration": 5}
    assert progress["first"]["J/low"] == next(line["J/low"] for line in lines if "J/low" in line)
    assert progress["last"]["response_tokens"] > 0
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(models[1]), strict=True))


class Recorder:
    """Stands for the log and for the bar."""

    def __init__(self):
        self.lines, self.shown = {}, []

    def scalars(self, step, values):
        assert step not in self.lines
        self.lines[step] = dict(values)

    def update(self, step, scalars, *, tokens):
        self.shown.append((step, tokens))


def test_the_rate_is_an_iterations_tokens_over_its_own_time():
    """Beginnings at 10, 14, 17 and 50; what is done between a flush and the next beginning counts for nobody."""
    now, recorder, progress = [0.0], Recorder(), {"first": None, "last": None}
    log = LateLog(recorder, recorder, progress, clock=lambda: now[0])

    def iteration(number, begins, added, tokens):
        now[0] = begins
        log.begin(number)
        now[0] = added
        log.add({"kl": np.float32(0.1), "J/low": np.float32(number)}, tokens)

    iteration(1, 10.0, 13.0, 80)
    assert recorder.lines == {}
    iteration(2, 14.0, 16.5, 60)
    iteration(3, 17.0, 19.0, 50)
    now[0] = 22.0
    log.flush()
    log.flush()
    iteration(4, 50.0, 51.0, 9)
    now[0] = 53.0
    log.flush()
    rates = {step: line["tokens_per_s"] for step, line in recorder.lines.items()}
    # 80 tokens in 14 - 10 seconds, 60 in 17 - 14, 50 in 22 - 17, 9 in 53 - 50.
    assert rates == {1: 20.0, 2: 20.0, 3: 10.0, 4: 3.0}
    assert [line["response_tokens"] for line in recorder.lines.values()] == [80.0, 60.0, 50.0, 9.0]
    assert recorder.shown == [(1, 80), (2, 60), (3, 50), (4, 9)]
    assert (progress["first"]["J/low"], progress["last"]["J/low"]) == (1.0, 4.0)


@pytest.mark.parametrize("iteration", [1, 3, 4])
def test_stopped_anywhere_it_ends_up_in_the_same_place(models, undisturbed, tmp_path, iteration, monkeypatch):
    """The signal comes while replies are scored, or (4) while the policy is evaluated."""
    stop, task = Stop(), Task()
    rewards = task.rewards

    def interrupted(*arguments):
        stop.asked = iteration != 4 and task.rollouts + 1 == iteration
        return rewards(*arguments)

    def evaluate(params):
        stop.asked = iteration == 4 and task.rollouts == iteration
        return first_weight(params)

    monkeypatch.setattr(task, "rewards", interrupted)
    with pytest.raises(Interrupted):
        fit(models, tmp_path, task=task, stop=stop, evaluate=evaluate)
    assert kept(tmp_path)[-1] == iteration
    fit(models, tmp_path)
    assert logged(tmp_path) == logged(undisturbed[0])
    assert_same(final(models, tmp_path)[0], final(models, undisturbed[0])[0])


def test_the_last_iterations_are_averaged_and_the_policy_goes_its_way(models, tmp_path):
    """Three of five iterations: the mean is p_1, p_2, p_3, (p_3 + p_4) / 2, (p_3 + p_4 + p_5) / 3, stopped or not."""

    def trajectory(folder, average, stop_at=None):
        seen, stop = [], Stop()

        def evaluate(params):
            seen.append(jax.tree.map(np.asarray, params))
            stop.asked = len(seen) - 1 == stop_at
            return {"combined": 0.0}

        loop = replace(LOOP, eval_every=1, average=average)
        if stop_at is not None:
            with pytest.raises(Interrupted):
                fit(models, folder, loop=loop, stop=stop, evaluate=evaluate)
        fit(models, folder, loop=loop, evaluate=evaluate)
        return seen

    policy = trajectory(tmp_path / "policy", 0.0)
    found = trajectory(tmp_path / "average", 0.6)
    stopped = trajectory(tmp_path / "stopped", 0.6, stop_at=4)
    expected = [*([params] for params in policy[:4]), policy[3:5], policy[3:6]]
    for group, mean, resumed in zip(expected, found, stopped, strict=True):
        assert_close(mean, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *group))
        assert_same(mean, resumed)
    assert_same(final(models, tmp_path / "policy")[0], policy[-1])
    assert_same(final(models, tmp_path / "average")[0], found[-1])
    assert_same(final(models, tmp_path / "stopped")[0], found[-1])
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(found[-1]), jax.tree.leaves(policy[-1]), strict=True))


def assert_close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_an_average_of_all_or_of_less_than_nothing_is_refused(average):
    with pytest.raises(ValueError, match=f"--ppo.average must be at least 0 and below 1, not {average:g}"):
        PPOConfig(average=average)


def test_the_best_policy_is_kept(models, tmp_path):
    scores = iter([1.0, 3.0, 2.0, 3.0])
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.asarray, params))
        return {"combined": next(scores)}

    progress = fit(models, tmp_path, loop=replace(LOOP, keep="best"), evaluate=evaluate)
    params, meta = final(models, tmp_path)
    assert meta == {"combined": 3.0, "iteration": 2}
    assert progress["best"] == meta
    assert_same(params, seen[1])


def test_nan_from_a_stream_names_stream_and_iteration(models, tmp_path):
    with pytest.raises(NonFinite, match=r"ppo, iteration 4: stream 'low': reward is nan .* before it is kept"):
        fit(models, tmp_path, task=Task(nan_at=4))
    assert kept(tmp_path) == [3]
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "ppo")
    state, meta = checkpoints.restore(fresh_state(models))
    checkpoints.close()
    assert int(state.step) == meta["iteration"] == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_diverging_policy_names_streams_and_iteration(models, tmp_path):
    numbers = StepNumbers(thresholds={"short": 0.5}, learning_rate=1e30, warmup_steps=0, stop_kl=1e30)
    loop = replace(LOOP, checkpoint_every=1, eval_every=0)
    with pytest.raises(NonFinite, match=r"ppo, iteration \d: stream low, short: .* is not finite") as caught:
        fit(models, tmp_path, numbers=numbers, loop=loop)
    iteration = int(str(caught.value).split("iteration ")[1][0])
    checkpoints = tmp_path / "checkpoints" / "ppo"
    assert all(int(path.name) < iteration for path in checkpoints.iterdir())


def test_sums_that_only_inherit_a_nan_do_not_hide_its_stream():
    numbers = {"kl": 0.1, "loss": float("nan"), "J/low": float("inf"), "grad_norm/short": 1.0}
    with pytest.raises(NonFinite, match=r"ppo, iteration 7: stream low: loss, J/low is not finite"):
        check_finite(7, numbers)
    with pytest.raises(NonFinite, match=r"ppo, iteration 7: kl is not finite"):
        check_finite(7, {"kl": float("nan")})
    check_finite(7, {"kl": 0.1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"--ppo.temperature must be above 0, not 0.0"),
        ({"ref_context": "none"}, r"--ppo.ref-context must be reasoned or direct, not 'none'"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**change)
