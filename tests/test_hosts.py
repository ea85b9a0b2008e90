"""Joining processes from flags and environments, and placing and reading arrays; two real ones are another test."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from morejax import hosts
from morejax.hosts import (
    exchange,
    finish,
    gather_rows,
    initialise,
    is_main,
    leave,
    on_main,
    own_share,
    place_global,
    place_local,
    say,
    to_host,
    together,
)
from morejax.sharding import make_mesh, rollout_sharding, state_shardings


@pytest.fixture
def joined(monkeypatch):
    """The arguments that reach `jax.distributed.initialize`, and an environment without any launcher."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", *hosts._LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append((args, more)))
    return calls


def test_one_process_is_left_alone(joined):
    initialise()
    assert joined == []
    assert is_main()


def test_explicit_flags(joined, capsys):
    initialise("10.0.0.1:1234", 4, 3, timeout=7, heartbeat=11)
    assert joined[0][0] == ("10.0.0.1:1234", 4, 3)
    times = {"initialization_timeout": 7, "heartbeat_timeout_seconds": 11}
    assert joined[0][1] == {"cluster_detection_method": "deactivate", **times}
    assert capsys.readouterr().err == "process 3 of 4 joins at 10.0.0.1:1234, within 7 s\n"


def test_variables_of_jax_stand_in_for_flags(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    initialise()
    initialise(process=0)
    assert [call[0] for call in joined] == [("10.0.0.1:1234", 2, 1), ("10.0.0.1:1234", 2, 0)]
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a whole number, not 'one'"):
        initialise()


@pytest.mark.parametrize(
    ("name", "one", "several"),
    [("SLURM_STEP_NUM_TASKS", "1", "2"), ("OMPI_COMM_WORLD_SIZE", "1", "8"), ("TPU_WORKER_HOSTNAMES", "a", "a,b")],
)
def test_a_launcher_of_several_processes_is_asked(joined, monkeypatch, name, one, several):
    monkeypatch.setenv(name, one)
    initialise()
    assert joined == []
    monkeypatch.setenv(name, several)
    initialise(timeout=9)
    assert joined == [((), {"initialization_timeout": 9, "heartbeat_timeout_seconds": 100})]


def test_auto_without_a_cluster_is_an_error(monkeypatch):
    def refuse(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(ValueError, match=r"auto: found no cluster that JAX knows \(.*\); give host:port"):
        initialise("auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:1", 2, None), "needs the number of processes and of this one, found processes=2 and process=None"),
        (("10.0.0.1:1", 2, 2), "process must lie between 0 and processes - 1 = 1, not 2"),
        ((None, 2, 1), "processes=2 and process=1 were given without a coordinator"),
    ],
)
def test_an_incomplete_description_is_refused(joined, arguments, message):
    with pytest.raises(ValueError, match=message):
        initialise(*arguments)
    assert joined == []


def test_a_state_is_placed_and_read_back(core):
    """As its shardings say, the PRNG key included; read back whole."""
    mesh, state = make_mesh(2, 2, 2), core.state(core.config())
    shardings = state_shardings(mesh, state)
    placed = place_global(state, shardings)
    for leaf, where in zip(jax.tree.leaves(placed), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    assert placed.key.dtype == state.key.dtype
    for found, expected in zip(jax.tree.leaves(to_host(placed)), jax.tree.leaves(to_host(state)), strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(to_host(placed).key, jax.random.key_data(state.key))


def test_with_one_process_its_part_is_the_whole():
    where = rollout_sharding(make_mesh(2, 2, 2))
    rows = {"tokens": np.arange(32).reshape(16, 2), "mask": np.arange(16) % 2 == 0}
    for place in (place_local, place_global):
        placed = place(rows, where)
        assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(4, 2)}
        for name, leaf in to_host(placed).items():
            np.testing.assert_array_equal(leaf, rows[name])


def test_alone_there_is_nobody_to_agree_with(capsys):
    assert exchange(lambda: {"seed": 1}) == [{"seed": 1}]
    assert on_main(lambda: 3) == 3
    # Not a JSON value, and not copied.
    kept = object()
    assert together(lambda: kept) is kept
    rows = np.arange(6).reshape(3, 2)
    assert gather_rows({"rows": rows}, [3])["rows"] is rows
    say("one line")
    assert capsys.readouterr().err == "one line\n"


@pytest.mark.parametrize("agree", [exchange, on_main, together])
def test_alone_a_failure_is_ones_own(agree):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        agree(fail)


@pytest.mark.parametrize(("count", "processes"), [(10, 4), (4, 4), (3, 4), (0, 2), (7, 1)])
def test_shares_are_equal_parts_in_order(monkeypatch, count, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = [own_share(count, process) for process in range(processes)]
    assert [thing for share in shares for thing in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert own_share(count) == shares[0]


@pytest.mark.parametrize("status", [0, 3, 143])
def test_alone_one_leaves_as_usual(status):
    with pytest.raises(SystemExit) as left:
        leave(status)
    assert left.value.code == status


def test_an_error_nobody_expected_is_shown_and_ends_the_process(capsys):
    def broken():
        raise KeyError("a mistake in the program")

    for main, status in ((lambda: 3, 3), (broken, 1)):
        with pytest.raises(SystemExit) as left:
            finish(main)
        assert left.value.code == status
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "KeyError: 'a mistake in the program'" in said


def test_only_a_failure_among_several_leaves_without_waiting(monkeypatch):
    left = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(hosts, "_LINGER", 0.0)
    monkeypatch.setattr(hosts.os, "_exit", left.append)
    leave(3)
    assert left == [3]
    for status in (0, 143):
        with pytest.raises(SystemExit):
            leave(status)
    assert left == [3]
