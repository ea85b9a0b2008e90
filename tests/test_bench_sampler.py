"""The floor of sampling by hand, and what the benchmark prints."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest

from morejax.bench import __main__ as cli
from morejax.bench import sampler
from morejax.bench.sizes import SIZES

TINY = SIZES["tiny"]


def test_bytes_of_decoding_by_hand():
    """One layer of width 16, vocabulary 64, 8 sequences of 6 + 4: three steps that see 7, 8 and 9 positions."""
    weights = 3 * (12 * 16**2 + 64 * 16)
    keys_and_values = 2 * 8 * 16 * (7 + 8 + 9)
    assert sampler.decode_bytes(TINY, "float32") == 4 * (weights + keys_and_values)
    assert sampler.decode_bytes(TINY, "bfloat16") == 2 * (weights + keys_and_values)
    assert sampler.decode_bytes(replace(TINY, layers=3), "float32") == 4 * 3 * (3 * 12 * 16**2 + keys_and_values) + (
        4 * 3 * 64 * 16
    )


def test_flops_by_hand():
    """One layer of width 16, 8 sequences of 6 + 4: the five positions before the prompt's last need keys and values."""
    keys_and_values, rest, pair = 4 * 16**2, 20 * 16**2, 4 * 16
    head = 2 * 16 * 64
    # Half of 6 x 6 pairs, less half of the 5 x 5 of those five positions; nine positions altogether.
    assert sampler.prefill_flops(TINY) == 8 * (6 * keys_and_values + rest + (36 - 25) / 2 * pair + head)
    assert sampler.decode_flops(TINY) == 8 * (3 * (keys_and_values + rest) + (81 - 36) / 2 * pair + 3 * head)


def test_the_floor_of_s():
    """38.1 GFLOP; a step reads 21 MB of weights and 40 MB of keys and values on average."""
    size = SIZES["S"]
    prefill, arithmetic, memory = sampler.floor_seconds(size, "float32", 200e9, 40e9)
    assert prefill * 200 == pytest.approx(21.39, abs=0.01)
    assert arithmetic * 200 == pytest.approx(9.46 + 0.93 + 6.31, abs=0.01)  # weights, attention, head
    assert memory == pytest.approx(47 * (20.97e6 + 39.8e6) / 40e9, rel=0.01)


def test_a_floor_share_says_what_binds():
    rates = {"slow memory": (1e15, 1e6, "memory"), "slow arithmetic": (1e6, 1e15, "arithmetic")}
    for flops, bandwidth, binds in rates.values():
        prefill, arithmetic, memory = sampler.floor_seconds(TINY, "float32", flops, bandwidth)
        floor = 1e3 * (prefill + max(arithmetic, memory))
        found = sampler._against_floor(TINY, "float32", 2 * floor, flops, bandwidth)
        assert found["decode_bound"] == binds
        assert found["floor_share"] == pytest.approx(0.5, abs=1e-3)


def lines(capsys, *flags):
    assert cli.main(["sampler", "--size", "tiny", "--rounds", "1", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_prints_one_json_line_an_engine(capsys):
    (found,) = map(json.loads, lines(capsys, "--engines", "morejax", "--json"))
    assert (found["bench"], found["size"], found["engine"]) == ("sampler", "tiny", "morejax")
    assert found["tokens_per_s"] == pytest.approx(8 * 4 / (found["ms"] / 1e3), rel=0.01)
    assert found["flops"] >= sampler.prefill_flops(TINY) + sampler.decode_flops(TINY)
    assert min(found[key] for key in ("ms", "mfu", "peak_gflops", "stream_gb_per_s", "floor_ms", "floor_share")) > 0
    assert "ratio" not in found


def test_without_torch_the_other_engine_is_left_out_and_said_so(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["sampler", "--size", "tiny", "--rounds", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["engine"] for line in printed.out.splitlines()] == ["morejax"]
    assert "engine transformers left out: torch is not installed (pip install 'morejax[parity]')" in printed.err


@pytest.mark.parity
def test_both_engines_in_one_run(capsys):
    pytest.importorskip("torch", reason="needs the parity extra")
    ours, theirs = lines(capsys)
    assert ours.startswith("tiny/morejax")
    assert theirs.startswith("tiny/transformers")
    assert theirs.endswith("1.00 x transformers")
    assert "% of the floor" in ours
