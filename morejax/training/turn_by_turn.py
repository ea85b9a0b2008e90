"""Replies sampled turn by turn, for tasks whose prompts depend on what the policy itself has said before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from morejax import hosts
from morejax.rollout import Sample
from morejax.training.batching import left_pad
from morejax.training.task import Ids, Task, TurnPrompts

BLOCK = 32
"""Replies of a call: few enough that late turns, which few dialogues have, are not mostly filling."""
STEP = 64
"""Contexts of a call are rounded up to a multiple of it: early turns have short ones."""

Draw = Callable[[np.ndarray, np.ndarray, jax.Array], Sample]
"""Prompts i32[B, C], their mask and a key -> replies; parameters and sampler are bound."""


def sample_turn_by_turn(
    draw: Draw,
    task: Task,
    prompts: Sequence[TurnPrompts],
    context: int,
    rows: int,
    key: jax.Array,
    *,
    block: int = BLOCK,
    width: int = BLOCK,
) -> tuple[list[TurnPrompts], Sample]:
    """First turns of all dialogues, then second turns after what was said in the first, and so on.

    Between two turns the replies are read on the host: they decide the next prompts. Blocks of a fixed size and few
    lengths keep it at few compiled shapes.

    Args:
        draw: the sampler.
        task: makes the prompts of a turn after given replies.
        prompts: of whole dialogues, those of a dialogue together, in order.
        context: C, the most that prompts are padded to.
        rows: S, of the result, at least as many as prompts.
        key: one for the rollout.
        block: replies of a call.
        width: B, rows of a call, at least `block`; the rest is filling, as a mesh may need it.

    Returns:
        The prompts that were answered, and S sampled rows (host arrays) in the order of the prompts; rows beyond them
        repeat the first.
    """
    made: list[TurnPrompts] = list(prompts)
    replies: list[Ids] = [()] * len(prompts)
    arrays: list[np.ndarray | None] = [None] * len(Sample._fields)
    for number, here in enumerate(_blocks(prompts, block)):
        for row in here:
            first = row - prompts[row].turn
            dialogue = prompts[first : _end(prompts, first)]
            made[row] = task.prompts_after(dialogue, replies[first:row])
        filled = [made[row].direct for row in here] + [made[here[0]].direct] * (width - len(here))
        length = min(context, -(-max(map(len, filled)) // STEP) * STEP)
        drawn = hosts.to_host(draw(*left_pad(filled, length, task.pad_id), jax.random.fold_in(key, number)))
        for place, found in enumerate(drawn):
            if found is not None:
                whole = arrays[place]
                if whole is None:
                    whole = arrays[place] = np.zeros((rows, *found.shape[1:]), found.dtype)
                whole[here] = found[: len(here)]
        for row, ids, valid in zip(here, drawn.tokens, drawn.mask, strict=False):
            replies[row] = tuple(int(token) for token in ids[valid])
    for whole in arrays:
        if whole is not None:
            whole[len(prompts) :] = whole[0]
    return made, Sample(*arrays)  # type: ignore[arg-type]


def _blocks(prompts: Sequence[TurnPrompts], size: int) -> list[list[int]]:
    """Rows of the same turn of different dialogues, at most so many, turn after turn."""
    by_turn: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_turn.setdefault(prompt.turn, []).append(row)
    turns = [by_turn[turn] for turn in sorted(by_turn)]
    return [rows[start : start + size] for rows in turns for start in range(0, len(rows), size)]


def _end(prompts: Sequence[TurnPrompts], first: int) -> int:
    """Row behind the last one of the dialogue that begins at `first`."""
    return next((row for row in range(first + 1, len(prompts)) if prompts[row].turn == 0), len(prompts))
