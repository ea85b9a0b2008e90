"""All turns to sample from as arrays on the host, of which every iteration takes some rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from morejax.iterate import Prompts
from morejax.tasks.shop import ShopSplit
from morejax.tasks.shop.context import TurnPrompts
from morejax.tasks.shop.on_device import turn_facts
from morejax.tasks.shop.state import take
from morejax.training.batching import left_pad
from morejax.training.rollouts import static_shapes


class PromptTable:
    """Prompts and facts of N turns.

    Args:
        split: where the turns come from.
        prompts: the turns.
        rows: S, sequences of an iteration.
        samples: replies to each turn; they stand together and share a group.
        reply: T.
        reasoned: does the reference read the reasoning?
        pad_id: padding token.
        seed: of the order.
    """

    def __init__(
        self,
        split: ShopSplit,
        prompts: Sequence[TurnPrompts],
        *,
        rows: int,
        samples: int,
        reply: int,
        reasoned: bool,
        pad_id: int,
        seed: int,
    ):
        self._turns, self._rows, self._samples, self._seed = len(prompts), rows, samples, seed
        shapes = static_shapes([prompts], rows, reply)
        self._direct = left_pad([prompt.direct for prompt in prompts], shapes.context, pad_id)
        self._reference = None
        if reasoned:
            self._reference = left_pad([prompt.reasoned for prompt in prompts], shapes.reasoned, pad_id)
        self._facts = turn_facts(split, prompts, reply)

    def chosen(self, iteration: int) -> np.ndarray:
        """i64[S / samples]: numbers of the turns of an iteration, from 1; every epoch has a new order, none is left."""
        per_iteration = self._rows // self._samples
        places = np.arange((iteration - 1) * per_iteration, iteration * per_iteration)
        epochs = {epoch: self._order(epoch) for epoch in set((places // self._turns).tolist())}
        return np.array([epochs[place // self._turns][place % self._turns] for place in places.tolist()])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._turns)

    def __call__(self, iteration: int) -> Prompts:
        """What an iteration answers."""
        chosen = np.repeat(self.chosen(iteration), self._samples)
        arrays: dict[str, Any] = {"tokens": self._direct[0][chosen], "mask": self._direct[1][chosen]}
        if self._reference is not None:
            arrays |= {"ref_tokens": self._reference[0][chosen], "ref_mask": self._reference[1][chosen]}
        arrays["group"] = np.arange(self._rows, dtype=np.int32) // self._samples
        return Prompts(**arrays, rewards=take(self._facts, chosen))
