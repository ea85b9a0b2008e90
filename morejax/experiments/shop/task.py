"""The shop as the training stages see it: sequences to learn from, prompts to answer, replies to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

# The modules register the streams.
from morejax.tasks.multiwoz import rewards as _learned_streams  # noqa: F401  (fluency, naturalness)
from morejax.tasks.shop import ShopDialogue, ShopSplit, generate, tokenizer
from morejax.tasks.shop import rewards as _shop_streams  # noqa: F401
from morejax.tasks.shop.context import Example, Ids, Serialiser, TurnPrompts
from morejax.tasks.shop.drills import drills
from morejax.tasks.streams import (
    SampledBatch,
    SampledTurn,
    StackedStreams,
    StreamContext,
    compute_streams,
    stack_streams,
)


class ShopCorpus:
    """Generated dialogues, each split made when it is first asked for.

    Args:
        sizes: split -> dialogues.
        seed: of all of them.
    """

    name = "shop"

    def __init__(self, sizes: Mapping[str, int], seed: int):
        self.sizes, self.seed = dict(sizes), seed
        self._made: dict[str, ShopSplit] = {}

    def split(self, name: str) -> ShopSplit:
        """A split.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self.sizes:
            raise ValueError(f"no split {name!r}, expected one of {', '.join(self.sizes)}")
        if name not in self._made:
            self._made[name] = generate(self.seed, self.sizes[name], name)
        return self._made[name]

    def dialogues(self, name: str) -> tuple[ShopDialogue, ...]:
        """The dialogues of a split."""
        return self.split(name).dialogues


class ShopTask:
    """Corpus, tokens and streams in one place; holds no parameters.

    Args:
        corpus: dialogues.
        serialiser: tokens of contexts and replies.
        streams: names, objectives first.
        context: what streams look at; the split of the sampled turns is added.
        drills: reading drills for each dialogue of `train`.
    """

    def __init__(
        self,
        corpus: ShopCorpus,
        serialiser: Serialiser,
        streams: Sequence[str],
        context: StreamContext | None = None,
        drills: int = 0,
    ):
        self.drills = drills
        self.corpus, self.serialiser, self.streams = corpus, serialiser, tuple(streams)
        self.context = context or StreamContext()
        self.tokenizer = serialiser.tokenizer
        self._prompts: dict[str, dict[str, list[TurnPrompts]]] = {}

    def with_context(self, context: StreamContext) -> ShopTask:
        """The same task with something else for streams to look at."""
        return self._changed(self.streams, context)

    def with_streams(self, streams: Sequence[str]) -> ShopTask:
        """The same task with other streams."""
        return self._changed(streams, self.context)

    def _changed(self, streams: Sequence[str], context: StreamContext) -> ShopTask:
        made = ShopTask(self.corpus, self.serialiser, streams, context, self.drills)
        made._prompts = self._prompts
        return made

    @property
    def eos_id(self) -> int:
        """Token that ends a reply."""
        return self.serialiser.token(tokenizer.EOS)

    @property
    def pad_id(self) -> int:
        """Padding token."""
        return self.serialiser.token(tokenizer.PAD)

    @property
    def drop_id(self) -> int:
        """Token that hides a dropped one."""
        return self.pad_id

    def examples(self, split: str, *, reasoned: bool = False) -> list[Example]:
        """Sequences to learn from: the split's dialogues, and drills where a model learns to answer from `train`."""
        found = self.serialiser.examples(self.corpus.split(split), reasoned=reasoned)
        if reasoned or split != "train" or not self.drills:
            return found
        return found + drills(self.serialiser, self.corpus.split(split), per_dialogue=self.drills)

    def prompts(self, dialogue: ShopDialogue) -> list[TurnPrompts]:
        """Direct and reasoned prompts of all turns of a dialogue, the history being the corpus's own."""
        if dialogue.split not in self._prompts:
            made = self.serialiser.prompts(self.corpus.split(dialogue.split))
            self._prompts[dialogue.split] = {turns[0].dialogue.id: turns for turns in made}
        return self._prompts[dialogue.split][dialogue.id]

    turn_by_turn = aloud = False

    def prompts_after(self, prompts: Sequence[TurnPrompts], said: Sequence[Ids]) -> TurnPrompts:
        """Prompts of the next turn: the same whatever was said, the history being the corpus's own."""
        return prompts[len(said)]

    def text(self, reply: Ids) -> str:
        """The words of a reply."""
        return tokenizer.decode(self.tokenizer, reply)

    def sampled(
        self,
        prompts: Sequence[TurnPrompts],
        replies: Sequence[Ids],
        lm_logp: np.ndarray | None = None,
        natural: np.ndarray | None = None,
    ) -> SampledBatch:
        """Replies to whole dialogues as streams see them; prompts of a dialogue stand together, in order."""
        dialogues: list[list[SampledTurn]] = []
        for prompt, reply in zip(prompts, replies, strict=True):
            if prompt.turn == 0:
                dialogues.append([])
            # Streams of the shop look for its own dialogues and turns there.
            dialogue: Any = prompt.dialogue
            dialogues[-1].append(SampledTurn(dialogue, dialogue.turns[prompt.turn], self.text(reply), reply, {}))
        return SampledBatch(tuple(map(tuple, dialogues)), lm_logp, natural)

    def rewards(self, batch: SampledBatch, max_reply: int, context: StreamContext | None = None) -> StackedStreams:
        """All streams as arrays; the dialogues are of one split."""
        context = context or self.context
        split = self.corpus.split(batch.turns[0].dialogue.split)
        values = compute_streams(
            self.streams, batch, replace(context, extra={**context.extra, "shop": split}), max_reply
        )
        return stack_streams(values, batch.lengths, max_reply)
