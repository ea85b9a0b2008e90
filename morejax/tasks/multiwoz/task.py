"""MultiWOZ as the training stages see it: sequences to learn from, prompts to answer, replies to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morejax.tasks.multiwoz import rewards  # noqa: F401  (registers the streams)
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import Earlier, Ids
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.records import Corpus, Dialogue, State, Turn
from morejax.tasks.multiwoz.scorer import derive_scoring_data, score
from morejax.tasks.streams import (
    SampledBatch,
    SampledTurn,
    StackedStreams,
    StreamContext,
    compute_streams,
    stack_streams,
)

Generate = Callable[[Sequence[Ids]], list[Ids]]
"""Prompts in, replies out; the model, its parameters and the sampler are bound."""


@dataclass(frozen=True)
class TurnPrompts:
    """The prompts of one system turn.

    Attributes:
        dialogue, turn: position in the corpus.
        direct: what the policy reads, ending with `<response>` (aloud: with `<acts>`).
        reasoned: what the scaffold reads: the same with dialogue acts before `<response>`.
        reference: the corpus reply.
        state: gold or predicted state.
    """

    dialogue: Dialogue
    turn: int
    direct: Ids
    reasoned: Ids
    reference: Ids
    state: State


class MultiwozTask:
    """Corpus, tokenizer and streams in one place; holds no parameters.

    Args:
        corpus: parsed corpus.
        serialiser: tokens of contexts and replies.
        streams: names, objectives first.
        context: what streams look at.
        weak: splits joined by + whose annotation is not exact; what is learnt from them says so.
        exact_repeat: how often exact dialogues are learnt from where weak ones are, too.
    """

    aloud = False

    def __init__(
        self,
        corpus: Corpus,
        serialiser: Serialiser,
        streams: Sequence[str],
        context: StreamContext,
        *,
        weak: str = "",
        exact_repeat: int = 1,
    ):
        self.corpus, self.serialiser, self.streams, self.context = corpus, serialiser, tuple(streams), context
        self.weak, self.exact_repeat = weak, exact_repeat
        self.tokenizer = serialiser.tokenizer
        self.track = serialiser.config.track

    def with_context(self, context: StreamContext) -> MultiwozTask:
        """The same task with something else for streams to look at."""
        return MultiwozTask(
            self.corpus, self.serialiser, self.streams, context, weak=self.weak, exact_repeat=self.exact_repeat
        )

    @property
    def turn_by_turn(self) -> bool:
        """Does a prompt depend on what the model has said in earlier turns?"""
        return self.serialiser.config.given

    @property
    def eos_id(self) -> int:
        """Token that ends a reply."""
        return vocabulary.token_id(self.tokenizer, vocabulary.EOS)

    @property
    def pad_id(self) -> int:
        """Padding token."""
        return vocabulary.token_id(self.tokenizer, vocabulary.PAD)

    @property
    def drop_id(self) -> int:
        """Token that hides a dropped one."""
        return self.pad_id

    def examples(self, splits: str, *, reasoned: bool = False, users: bool = False) -> list[Any]:
        """Sequences to learn from, what users say among the targets if asked for; beside weakly annotated dialogues the
        exact ones come `exact_repeat` times."""
        weak = {dialogue.id for dialogue in self.corpus.dialogues(self.weak)} if self.weak else set()
        dialogues, database = self.corpus.dialogues(splits), self.corpus.database
        made = self.serialiser.examples(dialogues, database, reasoned=reasoned, users=users, weak=weak)
        exact = [example for example in made if example.dialogue_id not in weak]
        return made + (exact * (self.exact_repeat - 1) if len(exact) < len(made) else [])

    def prompts(self, dialogue: Dialogue, states: Sequence[State] | None = None) -> list[TurnPrompts]:
        """Direct and reasoned prompts of all turns of a dialogue, the history being the corpus's own.

        Args:
            dialogue: from the corpus.
            states: per turn; the gold ones when None.
        """
        states = [turn.state for turn in dialogue.turns] if states is None else states
        replies = [turn.delex for turn in dialogue.turns]
        return [self._turn_prompts(dialogue, states, replies[:index]) for index in range(len(replies))]

    def prompts_after(self, prompts: Sequence[TurnPrompts], said: Sequence[Ids]) -> TurnPrompts:
        """Prompts of the next turn once the model has said something itself.

        Args:
            prompts: of all turns of the dialogue; their states are kept.
            said: the model's replies to its first turns.
        """
        replies = [vocabulary.decode(self.tokenizer, ids) for ids in said]
        return self._turn_prompts(prompts[0].dialogue, [prompt.state for prompt in prompts], replies)

    def _turn_prompts(self, dialogue: Dialogue, states: Sequence[State], replies: Sequence[str]) -> TurnPrompts:
        """Of the turn after these replies, which count as given. On the end-to-end track they are the history, too; on
        the policy track that is the corpus's own."""
        index = len(replies)
        turn, state, before = dialogue.turns[index], states[index], dialogue.turns[:index]
        shared: dict[str, Any] = dict(
            earlier=self._earlier(before, replies),
            user=turn.user,
            state=state,
            db=self.serialiser.db_ids(state, self.corpus.database),
            previous_state=before[-1].state if before else {},
            given=self.serialiser.given_ids(replies, states[:index]),
            where=f"dialogue {dialogue.id}, turn {index}",
        )
        return TurnPrompts(
            dialogue,
            index,
            self.serialiser.prompt(**shared),
            self.serialiser.prompt(**shared, with_acts=self.serialiser.acts_ids(turn.acts)),
            self.serialiser.reply_ids(turn.delex),
            state,
        )

    def _earlier(self, turns: Sequence[Turn], said: Sequence[str]) -> list[Earlier]:
        """Earlier turns after the model said this in them; on the policy track the corpus's replies are shown."""
        shown = [turn.delex for turn in turns] if self.track == "policy" else said
        told = [(turn.user, reply, turn.state) for turn, reply in zip(turns, shown, strict=True)]
        return self.serialiser.earlier(told, self.corpus.database, said)

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
            text = vocabulary.decode(self.tokenizer, reply)
            turn = SampledTurn(prompt.dialogue, prompt.dialogue.turns[prompt.turn], text, reply, prompt.state)
            dialogues[-1].append(turn)
        return SampledBatch(tuple(map(tuple, dialogues)), lm_logp, natural)

    def rewards(self, batch: SampledBatch, max_reply: int, context: StreamContext | None = None) -> StackedStreams:
        """All streams as arrays."""
        values = compute_streams(self.streams, batch, context or self.context, max_reply)
        return stack_streams(values, batch.lengths, max_reply)

    def predict(self, splits: str, generate: Generate, generate_state: Generate | None = None, limit: int = 0):
        """Predictions in the standard format for every dialogue of the splits.

        On the policy track all turns are answered at once, from gold states and the corpus's own history; with
        `--context.given` turn follows turn, since what the model has given itself is in its prompts. So it is on the
        end-to-end track: the state is generated from the predicted one before, and the history holds the model's own
        replies.

        Args:
            splits: e.g. `dev`.
            generate: answers prompts.
            generate_state: writes states (end-to-end track).
            limit: first dialogues only; 0 takes all.

        Returns:
            dialogue id -> one {"response", ...} per turn.
        """
        dialogues = self.corpus.dialogues(splits)
        dialogues = dialogues[:limit] if limit else dialogues
        if self.track == "policy" and self.turn_by_turn:
            return self._predict_turn_by_turn(dialogues, generate)
        if self.track == "policy":
            prompts = [prompt for dialogue in dialogues for prompt in self.prompts(dialogue)]
            replies = generate([prompt.direct for prompt in prompts])
            out: dict[str, list[dict[str, Any]]] = {dialogue.id: [] for dialogue in dialogues}
            for prompt, reply in zip(prompts, replies, strict=True):
                out[prompt.dialogue.id].append({"response": vocabulary.decode(self.tokenizer, reply)})
            return out
        if generate_state is None:
            raise ValueError("the end-to-end track needs generate_state")
        return self._predict_end_to_end(dialogues, generate, generate_state)

    def _predict_turn_by_turn(self, dialogues: Sequence[Dialogue], generate: Generate):
        prompts = {dialogue.id: self.prompts(dialogue) for dialogue in dialogues}
        said: dict[str, list[Ids]] = {dialogue.id: [] for dialogue in dialogues}
        for index in range(max(map(len, prompts.values()), default=0)):
            live = [name for name, turns in prompts.items() if index < len(turns)]
            replies = generate([self.prompts_after(prompts[name], said[name]).direct for name in live])
            for name, reply in zip(live, replies, strict=True):
                said[name].append(reply)
        return {
            name: [{"response": vocabulary.decode(self.tokenizer, ids)} for ids in replies]
            for name, replies in said.items()
        }

    def _predict_end_to_end(self, dialogues, generate: Generate, generate_state: Generate):
        out: dict[str, list[dict[str, Any]]] = {dialogue.id: [] for dialogue in dialogues}
        for index in range(max(len(dialogue.turns) for dialogue in dialogues)):
            live = [dialogue for dialogue in dialogues if index < len(dialogue.turns)]
            shared = [self._own_history(dialogue, out[dialogue.id]) for dialogue in live]
            states = self.track_states(shared, generate_state)
            prompts = [
                self.serialiser.prompt(**context, state=state, db=self.serialiser.db_ids(state, self.corpus.database))
                for context, state in zip(shared, states, strict=True)
            ]
            for dialogue, state, reply in zip(live, states, generate(prompts), strict=True):
                text = vocabulary.decode(self.tokenizer, reply)
                out[dialogue.id].append({"response": text, "state": state})
        return out

    def _own_history(self, dialogue: Dialogue, said: list[dict[str, Any]]) -> dict[str, Any]:
        """Prompt arguments of the next turn when the system's earlier replies and states are the model's."""
        earlier = [(turn.user, own["response"], own["state"]) for turn, own in zip(dialogue.turns, said, strict=False)]
        return dict(
            earlier=self.serialiser.earlier(earlier, self.corpus.database),
            user=dialogue.turns[len(said)].user,
            previous_state=said[-1]["state"] if said else {},
            given=self.serialiser.given_ids([own["response"] for own in said], [own["state"] for own in said]),
            where=f"dialogue {dialogue.id}, turn {len(said)}",
        )

    def track_states(self, contexts: Sequence[dict[str, Any]], generate_state: Generate) -> list[State]:
        """States that the model writes for prompt arguments without a state."""
        prompts = [self.serialiser.prompt(**context, state=None) for context in contexts]
        before = [context["previous_state"] for context in contexts]
        users = [[*(turn.user for turn in context["earlier"]), context["user"]] for context in contexts]
        return list(map(self.serialiser.state_after, generate_state(prompts), before, users))

    def corpus_history(self, dialogue: Dialogue) -> Iterator[dict[str, Any]]:
        """Prompt arguments of every turn when history and the state before are the corpus's."""
        for index, turn in enumerate(dialogue.turns):
            before = dialogue.turns[:index]
            yield dict(
                earlier=self._earlier(before, [t.delex for t in before]),
                user=turn.user,
                previous_state=before[-1].state if before else {},
                given=self.serialiser.given_ids([t.delex for t in before], [t.state for t in before]),
                where=f"dialogue {dialogue.id}, turn {index}",
            )

    def split_reasoned(self, ids: Ids) -> tuple[Ids, Ids]:
        """Acts and reply of what a model that reasons wrote; see `TokenIds.split_reasoned`."""
        return self.serialiser.split_reasoned(ids)

    def score(self, predictions: dict[str, list[dict[str, Any]]], splits: str) -> dict[str, Any]:
        """The standard scorer's numbers of predictions on these splits."""
        data = derive_scoring_data(self.corpus, splits).only(predictions)
        return score(predictions, data, self.corpus.database)  # type: ignore[arg-type]
