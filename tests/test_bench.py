"""FLOPs by hand and against XLA, the floor of the workloads, and what the benchmarks print."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from morejax.bench import __main__ as cli
from morejax.bench import step
from morejax.bench.flops import count_flops
from morejax.bench.measure import Timing, interleaved, ratio, utilisation
from morejax.bench.plots import plot_sweep
from morejax.bench.sizes import SIZES, head_flops, iteration_flops, trunk_flops, update_flops
from morejax.bench.workload import make_frozen, make_prompts, make_rollout, make_state, rewards, step_config
from morejax.iterate import RewardContext

TINY = SIZES["tiny"]


def flops_of(function, *arguments, **options):
    return count_flops(jax.jit(function).lower(*arguments).compile().as_text(), **options)


def test_a_loop_counts_as_often_as_it_runs():
    x, weights = jnp.ones((64, 32)), jnp.ones((5, 32, 32))

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    by_hand = 5 * (2 * 64 * 32 * 32 + 64 * 32)
    assert flops_of(layers, x, weights) == pytest.approx(by_hand, rel=1e-3)
    # What XLA itself says of the same program: one turn of the loop.
    assert jax.jit(layers).lower(x, weights).compile().cost_analysis()["flops"] < by_hand / 4


def test_without_loops_the_count_is_that_of_xla():
    x, w = jnp.ones((64, 32)), jnp.ones((32, 48))

    def function(x, w):
        return jax.nn.relu(x @ w * 2.0).sum()

    compiled = jax.jit(function).lower(x, w).compile()
    assert count_flops(compiled.as_text()) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_a_loop_of_unknown_length_counts_as_often_as_the_caller_says():
    x = jnp.ones((16, 16))

    def squares(x, limit):
        return jax.lax.while_loop(lambda x: x.sum() < limit, lambda x: x @ x, x)

    once, seven = (flops_of(squares, x, 1e9, unknown_trips=trips) for trips in (1, 7))
    assert seven - once == pytest.approx(6 * 2 * 16**3, rel=0.05)


def test_of_a_conditional_one_branch_counts():
    x = jnp.ones((16, 16))

    def maybe(x, wanted):
        return jax.lax.cond(wanted, lambda: x @ x, lambda: x)

    dear, cheap = (flops_of(maybe, x, True, branch=branch) for branch in (max, min))
    assert dear - cheap == 2 * 16**3


def test_products_of_cublas_are_counted():
    text = """HloModule jit_f
ENTRY %main (a: f32[8,16], b: f32[16,4]) -> f32[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  %gemm = (f32[8,4]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%gemm), index=0
}
"""
    assert count_flops(text) == 2 * 8 * 16 * 4
    with pytest.raises(ValueError, match="no ENTRY"):
        count_flops("HloModule empty")


def test_the_floor_is_that_of_the_formulas():
    size = SIZES["S"]
    # Four blocks of 12 x 256^2 weights over 32 x 176 positions, and half of the 176 x 176 scores.
    assert trunk_flops(size, 176) == 2 * 12 * 256**2 * 4 * 32 * 176 + 4 * 32 * 2 * 176**2 * 256
    assert head_flops(size) == 2 * 32 * 48 * 256 * 8192
    for found, gigaflops in (
        (update_flops(size, "shared"), 131.7),
        (update_flops(size, "own"), 244.1),
        (iteration_flops(size, "shared"), 219.3),
        (iteration_flops(size, "own"), 369.2),
        (update_flops(SIZES["M"], "shared"), 456.7),
        (iteration_flops(SIZES["M"], "own"), 1343.5),
    ):
        assert found / 1e9 == pytest.approx(gigaflops, abs=0.06)


def test_utilisation_by_hand():
    timing, base = Timing(wall=[0.3, 0.2, 0.4], cpu=[0.5, 0.4, 0.6]), Timing(wall=[0.1, 0.2, 0.2], cpu=[0.2, 0.2, 0.1])
    assert ratio(timing, base) == 2.0
    found = utilisation(timing, 3e9, 4.5e9, base, 2e9)
    assert found["ms"] == 300.0
    assert found["peak_gflops"] == 20.0
    assert found["mfu"] == pytest.approx(0.5)
    assert found["hfu"] == pytest.approx(0.75)
    assert found["mfu_cpu"] == pytest.approx((3e9 / 0.5) / (2e9 / 0.1))


def test_turns_alternate_and_the_second_call_counts():
    calls = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == list("aabbaabb")
    assert {name: len(timing.wall) for name, timing in timings.items()} == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match="--rounds must be at least 1, not 0"):
        interleaved({}, rounds=0)


def test_rewards_of_the_workload_by_hand():
    prompts = make_prompts(TINY)
    wanted = int(prompts.rewards["wanted"][0])
    tokens = np.array(prompts.rewards["reference"])
    tokens[0] = [8 * (wanted % 8), 3, 3, 3]
    context = RewardContext(prompts, make_frozen(TINY).rewards, jnp.full((8, 4), -2.0))
    found = jax.jit(rewards)(jnp.asarray(tokens), jnp.ones((8, 4), bool), context)
    sums = jnp.concatenate([found.objectives, found.constraints], axis=-1).sum(1)
    # The other replies are their references; every reply is as long as it may be, so none keeps the budget.
    np.testing.assert_allclose(sums[1:, 0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(sums[:, 1], -2.0, rtol=1e-6)
    assert float(sums[0, 3]) == 0.5  # two of four tokens are repeated
    assert float(sums[0, 4]) == float(wanted < 8)
    np.testing.assert_array_equal(sums[:, 5], 0.0)
    assert not found.objectives[:, :-1].any()


def test_plain_is_not_charged_for_the_gradients_of_streams():
    config = step_config("plain", minibatches=1, kl="k3")
    state, rollout = make_state(TINY, config, "shared"), make_rollout(TINY, config)
    with_streams, without = (step.compile_variant(config, state, rollout, streams=kept) for kept in (True, False))
    # The Gram matrix at the virtual layer: one 16 x 16 product over 32 tokens, at least.
    assert with_streams.flops - without.flops > 2 * 32 * 16 * 16


def test_exact_norms_of_objectives_cost_a_backward_pass_each():
    """Of 6 streams, K = 4 are measured: 4 + 1 pulls instead of 6 + 1 (the regulariser's); plain PPO has one."""
    flops = {}
    for variant in ("plain", "exact", "exact_streams"):
        config = step_config(variant, minibatches=1, kl="k3")
        state, rollout = make_state(TINY, config, "shared"), make_rollout(TINY, config)
        flops[variant] = step.compile_variant(config, state, rollout, streams=variant != "plain").flops
    pull = (flops["exact_streams"] - flops["exact"]) / 2
    assert flops["exact"] - flops["plain"] == pytest.approx(4 * pull, rel=0.1)


def test_a_profile_names_the_products(capsys):
    assert cli.main(["step", "--size", "tiny", "--variants", "more", "--minibatches", "2", "--profile", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["bench"] for line in lines} == {"profile"}
    assert [line["ms"] for line in lines] == sorted((line["ms"] for line in lines), reverse=True)
    assert sum(line["share"] for line in lines) == pytest.approx(1.0, abs=0.05)
    products = [line for line in lines if line["kind"] == "product"]
    assert products
    assert all("dot_general" in line["source"] for line in products)


def test_the_command_prints_one_json_line_a_variant(capsys):
    flags = ["step", "--size", "tiny", "--rounds", "1", "--minibatches", "2", "--variants", "plain", "more", "--json"]
    assert cli.main(flags) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["variant"] for line in lines] == ["plain", "more"]
    for line in lines:
        assert line["bench"] == "step"
        assert (line["size"], line["critic"], line["minibatches"], line["rounds"]) == ("tiny", "shared", 2, 1)
        assert line["flops"] > line["model_flops"] > 0
        assert min(line[key] for key in ("ms", "temp_bytes", "mfu", "hfu", "peak_gflops", "compile_s")) > 0
        assert line["device"]
    assert lines[0]["flops_ratio"] == 1.0 < lines[1]["flops_ratio"] < 1.5


@pytest.mark.slow
def test_an_iteration_in_one_program_and_in_parts(capsys):
    flags = ["iteration", "--size", "tiny", "--rounds", "1", "--critic", "shared", "--json"]
    assert cli.main(flags) == 0
    program, parts = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (program["form"], parts["form"]) == ("program", "parts")
    assert program["parts_ratio"] > 0
    # The same work, however it is cut; the floor leaves out what is not a matrix product.
    assert program["flops"] == pytest.approx(parts["flops"], rel=0.03)
    assert program["flops"] > program["model_flops"]


def test_a_sweep_is_drawn(tmp_path):
    shared = {
        "size": "S",
        "critic": "shared",
        "device": "cpu",
        "jax": "0",
        "ms": 1.0,
        "temp_bytes": 2,
        "compile_s": 3.0,
    }
    shared |= {"sequences": 8, "layers": 4}
    records = [shared | {"axis": axis, "layers_by": how} for axis in ("batch", "depth") for how in ("scan", "unrolled")]
    path = plot_sweep(records, tmp_path / "sweep.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_depth_by_scan_is_compiled_once():
    """The program of scanned layers is as long for eight layers as for two."""
    config = step_config("more", minibatches=2, kl="k3")

    def length(layers):
        size = replace(TINY, layers=layers)
        state = make_state(size, config, "shared", scan=True)
        lowered = jax.jit(lambda s, r: step.train_step(s, r, config)).lower(state, make_rollout(size, config))
        return len(lowered.as_text().splitlines())

    assert length(8) == length(2)
