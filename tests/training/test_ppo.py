"""The PPO loop on a toy task: what is logged and kept, how it stops and goes on."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from morejax.config import StepNumbers
from morejax.training import average, ppo
from morejax.training.checkpoint import Checkpoints, load_params
from morejax.training.interrupt import Interrupted
from morejax.training.language_model import NonFinite
from morejax.training.late_log import LateLog, check_finite
from morejax.training.ppo_config import PPOConfig
from morejax.training.ppo_loop import Watch

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode puts no test directory on the path
from toy_ppo import LOOP, SHAPES, STEP, Task, build_models, dialogues, fresh_state

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def models(core):
    return build_models(core)


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


def fit(
    models, folder, *, task=None, loop=LOOP, stop=None, evaluate=first_weight, numbers=None, prompts=None, run=None
):
    state = fresh_state(models, numbers)
    return ppo.fit(
        task or Task(),
        state if run is None else state.replace(key=jax.random.fold_in(state.key, run)),
        models[2],
        prompts or dialogues(),
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


@pytest.mark.parametrize("stop_at", [None, 2, 3, 5])
def test_runs_begin_anew_and_their_ends_are_averaged(models, tmp_path, stop_at):
    """Two runs of three iterations: (p_3 + q_3) / 2 of one run with the key k and of one with fold_in(k, 1)."""
    # One dialogue that fills a rollout: every batch is the same, in whichever run.
    one = {"prompts": dialogues((8,)), "loop": replace(LOOP, iterations=3, average=0.3)}
    fit(models, tmp_path / "p", **one)
    fit(models, tmp_path / "q", **one, run=1)
    p, q = (final(models, tmp_path / name)[0] for name in "pq")
    two = one | {"loop": replace(one["loop"], runs=2, eval_every=1)}
    if stop_at is not None:
        stop, task = Stop(), Task()

        def evaluate(params):
            stop.asked = task.rollouts == stop_at
            return first_weight(params)

        with pytest.raises(Interrupted):
            fit(models, tmp_path / "both", **two, task=task, stop=stop, evaluate=evaluate)
        assert kept(tmp_path / "both")[-1] == stop_at
    fit(models, tmp_path / "both", **two)
    params, meta = final(models, tmp_path / "both")
    assert meta == {"iteration": 6}
    assert_close(params, jax.tree.map(lambda a, b: (a + b) / 2, p, q))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True))
    numbers = {name: [line for line in logged(tmp_path / name) if "kl" in line] for name in ("p", "q", "both")}
    assert [line["step"] for line in numbers["both"]] == [1, 2, 3, 4, 5, 6]
    for line, alone in zip(numbers["both"], numbers["p"] + numbers["q"], strict=True):
        assert line == alone | {"step": line["step"]}


def test_weights_of_an_average_over_two_runs():
    """The last two of four iterations: the policy itself, then 1/1, 1/2, nothing twice, 1/3, 1/4."""
    assert [average.weight(i, 4, 0.5) for i in range(1, 9)] == [1, 1, 1, 1 / 2, 0, 0, 1 / 3, 1 / 4]


@pytest.mark.parametrize(
    ("runs", "message"),
    [(0, "--ppo.runs must be at least 1, not 0"), (2, "--ppo.runs 2 .* --ppo.average must be above 0, not 0")],
)
def test_runs_that_make_no_sense(runs, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(runs=runs)


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
