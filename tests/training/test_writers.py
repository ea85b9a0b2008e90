from __future__ import annotations

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from morejax.training.progress import Progress, format_count, format_duration
from morejax.training.writers import (
    JsonlWriter,
    MultiWriter,
    TensorBoardWriter,
    encode_scalars,
    open_writers,
    read_metrics,
    read_stages,
)


def test_a_line_is_flat_flushed_and_in_shortest_form(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonlWriter(path, "ppo")
    writer.scalars(3, {"kl": np.float32(0.1), "tokens": np.int64(7), "J/success": jnp.float32(0.25), "x": 0.1})
    line = path.read_text()  # flushed though not closed
    assert line == '{"stage": "ppo", "step": 3, "kl": 0.1, "tokens": 7, "J/success": 0.25, "x": 0.1}\n'


def test_float32_survives_the_log_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    writer = JsonlWriter(tmp_path / "metrics.jsonl", "ppo")
    for step, value in enumerate(values):
        writer.scalars(step, {"v": value})
    read = read_metrics(tmp_path)["v"].astype(np.float32)
    np.testing.assert_array_equal(read, values)


def test_bfloat16_is_a_number():
    assert encode_scalars({"v": jnp.bfloat16(0.5)}) == {"v": 0.5}


def test_nan_and_infinities_are_strings_of_valid_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path, "ppo").scalars(0, {"a": math.nan, "b": np.float32(np.inf), "c": -math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert (record["a"], record["b"], record["c"]) == ("NaN", "Infinity", "-Infinity")
    metrics = read_metrics(path)
    assert math.isnan(metrics["a"][0])
    assert (metrics["b"][0], metrics["c"][0]) == (math.inf, -math.inf)


@pytest.mark.parametrize("values", [{"v": np.zeros(2)}, {"v": "high"}, {"v": None}])
def test_what_is_no_number_is_refused_by_name(values):
    with pytest.raises(ValueError, match="metric 'v'"):
        encode_scalars(values)


@pytest.mark.parametrize("name", ["stage", "step"])
def test_reserved_names_are_refused(name):
    with pytest.raises(ValueError, match=name):
        encode_scalars({name: 1})


def _log(run_dir, steps, restored=None):
    with open_writers(run_dir, "ppo", restored_step=restored) as writer:
        for step in steps:
            writer.scalars(step, {"kl": step / 3})


def test_a_resumed_log_equals_an_undisturbed_one(tmp_path):
    for name in ("whole", "killed"):
        with open_writers(tmp_path / name, "supervised") as writer:
            writer.scalars(99, {"loss": 1.5})
    _log(tmp_path / "whole", range(8))
    _log(tmp_path / "killed", range(6))
    killed = tmp_path / "killed" / "metrics.jsonl"
    killed.write_text(killed.read_text() + '{"stage": "ppo", "step": 6, "k')  # killed while writing a line
    _log(tmp_path / "killed", range(4, 8), restored=3)
    assert killed.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_truncation_leaves_other_stages_alone_and_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path, "supervised").scalars(50, {"loss": 1.0})
    writer = JsonlWriter(path, "ppo")
    for step in range(5):
        writer.scalars(step, {"kl": 0.0})
    assert writer.truncate_after("ppo", 1) == 3
    assert writer.truncate_after("ppo", 1) == 0
    writer.scalars(2, {"kl": 1.0})
    metrics = read_metrics(path)
    assert metrics["stage"].tolist() == ["supervised", "ppo", "ppo", "ppo"]
    assert metrics["step"].tolist() == [50, 0, 1, 2]


def test_columns_have_nan_where_a_line_lacks_the_metric(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl", "ppo")
    writer.scalars(0, {"kl": 1.0})
    writer.scalars(1, {"kl": 2.0, "eval/bleu": 18.0})
    metrics = read_metrics(tmp_path, stage="ppo")
    assert metrics["step"].dtype == np.int64
    assert "stage" not in metrics
    np.testing.assert_array_equal(metrics["eval/bleu"], [np.nan, 18.0])
    assert read_metrics(tmp_path, stage="absent")["step"].size == 0


def test_stages_are_read_apart_without_each_others_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path, "supervised").scalars(0, {"loss": 1.0})
    JsonlWriter(path, "ppo").scalars(0, {"kl": 2.0})
    stages = read_stages(path)
    assert list(stages) == ["supervised", "ppo"]
    assert set(stages["ppo"]) == {"step", "kl"}


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "ppo", "step": 0}\n{"stage": "ppo"\n{"stage": "ppo", "step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(path)
    path.write_text('{"loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1.*'stage' and 'step'"):
        read_metrics(path)


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_events_hold_the_scalars(tmp_path):
    writer = TensorBoardWriter(tmp_path, "ppo")
    MultiWriter(writer).scalars(4, {"J/success": 0.75})
    writer.text("config", "{}")
    writer.close()
    (events,) = (tmp_path / "ppo").glob("events.out.tfevents.*")
    assert b"J/success" in events.read_bytes()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_without_a_terminal_lines_come_every_ten_seconds_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("ppo", 40, stream=stream, clock=clock)
    for step in range(1, 41):
        clock.now = step
        progress.update(step, {"J/success": 0.71234}, tokens=2000)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/40", "11/40", "21/40", "31/40", "40/40"]
    assert lines[1] == "ppo 11/40  27%  2k tokens/s  29s left  J/success 0.7123"
    assert "\r" not in stream.getvalue()


def test_every_steps_wins_over_seconds():
    clock, stream = Clock(), io.StringIO()
    progress = Progress("ppo", 9, stream=stream, clock=clock, every_steps=4)
    for step in range(1, 10):
        progress.update(step)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/9", "5/9", "9/9"]


def test_rates_leave_out_the_first_update_which_compiles():
    clock = Clock()
    progress = Progress("supervised", 12, start=2, stream=io.StringIO(), clock=clock)
    clock.now = 100.0
    progress.update(3, tokens=500)
    assert progress.seconds_left is None
    for step in (4, 5, 6):
        clock.now += 2.0
        progress.update(step, tokens=500)
    assert progress.tokens_per_s == 250.0
    assert progress.seconds_left == 12.0


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock, stream = Clock(), Terminal()
    with Progress("ppo", 3, stream=stream, clock=clock) as progress:
        for step in (1, 2, 3):
            clock.now += 1.0
            progress.update(step, {"kl": 0.5}, tokens=10)
        progress.write("checkpoint written")
    assert "ppo" in stream.getvalue()
    assert "kl 0.5" in stream.getvalue()
    assert "checkpoint written" in stream.getvalue()
    assert "\r" in stream.getvalue()


def test_numbers_are_written_the_short_way():
    assert [format_duration(s) for s in (0.4, 59.6, 185, 7620, math.inf)] == [
        "0s",
        "1m00s",
        "3m05s",
        "2h07m",
        "?",
    ]
    assert [format_count(n) for n in (734, 12345, 4_560_000)] == ["734", "12.3k", "4.56M"]
