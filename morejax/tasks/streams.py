"""Reward streams: what a sampled reply is judged by, one registered function per stream.

A stream is a *constraint* (its J has a threshold) or an *objective* (its J is maximised). A function looks at
a batch of sampled dialogues and says, turn by turn, whether it applies, what reward is learnt from and what
its J averages::

    @register_stream("brevity", kind="objective")
    def brevity(batch: SampledBatch, context: StreamContext) -> StreamValues:
        return StreamValues(reward=[1.0 / len(turn.tokens) for turn in batch.turns])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.database import Database
    from morejax.tasks.multiwoz.records import Dialogue, Turn

Kind = Literal["constraint", "objective"]


class NonFiniteStream(ValueError, FloatingPointError):
    """A stream returned NaN or infinity; the message names stream, dialogue and turn."""


@dataclass(frozen=True)
class SampledTurn:
    """One sampled system reply and the turn it answers.

    Attributes:
        dialogue: the corpus dialogue.
        turn: the corpus turn, with the reference reply in `turn.delex`.
        text: sampled delexicalised reply, placeholders as "[name]".
        tokens: sampled token ids, `<eos>` included where it was sampled; never empty. Of a policy that reasons aloud
            the reasoning is among them (not in `text`).
        state: state the reply was sampled from, gold or predicted.
    """

    dialogue: Dialogue
    turn: Turn
    text: str
    tokens: tuple[int, ...]
    state: dict[str, dict[str, str]]


@dataclass(frozen=True)
class SampledBatch:
    """Whole sampled dialogues; S is the number of turns in all of them, in order.

    Attributes:
        dialogues: sampled turns of each dialogue, all turns in order.
        lm_logp: f32[S], mean log-probability per token of the reply under a frozen language model, in nats.
        natural: f32[S], the reward head's probability that a human wrote the reply.
        shared: scratch for what several streams compute from the same batch.
    """

    dialogues: tuple[tuple[SampledTurn, ...], ...]
    lm_logp: np.ndarray | None = None
    natural: np.ndarray | None = None
    shared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("lm_logp", "natural"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (len(self.turns),):
                raise ValueError(f"SampledBatch.{name} has shape {np.shape(values)}, expected ({len(self.turns)},)")
        for turn in self.turns:
            if not turn.tokens:
                where = f"dialogue {turn.dialogue.id}, turn {turn.turn.index}"
                raise ValueError(f"SampledBatch: {where} has no tokens, expected at least <eos>")

    @cached_property
    def turns(self) -> tuple[SampledTurn, ...]:
        """All turns of all dialogues, [S]."""
        return tuple(turn for dialogue in self.dialogues for turn in dialogue)

    @cached_property
    def lengths(self) -> np.ndarray:
        """i32[S], tokens per reply, reasoning aloud included."""
        return np.array([len(turn.tokens) for turn in self.turns], np.int32)


@dataclass(frozen=True)
class StreamContext:
    """What streams may look at besides the sampled replies.

    Attributes:
        database: the task's database.
        fluency_range: (lo, hi) of the mean token log-probability of corpus replies, in nats.
        placeholders: token id -> unified upper-case placeholder name, for dense rewards.
        graded: learn Inform and Success from a graded form (see there) and not from the 0/1 of the scorer.
        turn_by_turn: were replies sampled after the model's own earlier ones? What a reply changes is then told from
            what people would have gone on to say, not from the model's later replies, which knew of it.
        extra: whatever a stream of one's own needs.
    """

    database: Database | None = None
    fluency_range: tuple[float, float] | None = None
    placeholders: Mapping[int, str] = field(default_factory=dict)
    graded: bool = True
    turn_by_turn: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamValues:
    """A stream's verdict on S replies; sequences are converted to arrays.

    `J = sum(weight * applies * score) / sum(weight * applies)`, never over turns the stream says nothing
    about.

    Attributes:
        reward: f32[S], written to the last token of the reply; what is learnt from.
        applies: bool[S], is the stream defined for this turn? Default: everywhere.
        score: f32[S], what J averages. Default: the reward, dense part included.
        weight: f32[S], weight of the turn in J. Default: 1.
        token_reward: f32[S, T'] dense reward added at its token, T' up to the longest reply; None for none.
    """

    reward: np.ndarray
    applies: np.ndarray = None  # type: ignore[assignment]
    score: np.ndarray = None  # type: ignore[assignment]
    weight: np.ndarray = None  # type: ignore[assignment]
    token_reward: np.ndarray | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the way to fill in defaults of a frozen dataclass
        put(self, "reward", np.asarray(self.reward, np.float32))
        size = self.reward.shape
        if self.token_reward is not None:
            put(self, "token_reward", np.asarray(self.token_reward, np.float32))
        if self.score is None:
            dense = 0.0 if self.token_reward is None else self.token_reward.sum(-1)
            put(self, "score", self.reward + dense)
        put(self, "score", np.asarray(self.score, np.float32))
        put(self, "applies", np.ones(size, bool) if self.applies is None else np.asarray(self.applies, bool))
        put(
            self,
            "weight",
            np.ones(size, np.float32) if self.weight is None else np.asarray(self.weight, np.float32),
        )

    @property
    def mean(self) -> float:
        """J of the stream on this batch; 0 where it applies nowhere."""
        weight = self.weight * self.applies
        return float(np.sum(weight * self.score) / np.sum(weight)) if weight.any() else 0.0


StreamFunction = Callable[[SampledBatch, StreamContext], StreamValues]


@dataclass(frozen=True)
class Stream:
    """A registered stream; `description` is the first line of its function's docstring."""

    name: str
    kind: Kind
    function: StreamFunction

    @property
    def description(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]


_REGISTRY: dict[str, Stream] = {}


def register_stream(name: str, kind: Kind) -> Callable[[StreamFunction], StreamFunction]:
    """Decorator that makes a function a stream of this name.

    Args:
        name: what a configuration calls it.
        kind: "constraint" or "objective".

    Raises:
        ValueError: the kind is neither, or another function has the name.
    """
    if kind not in ("constraint", "objective"):
        raise ValueError(f"stream {name!r}: kind is {kind!r}, expected 'constraint' or 'objective'")

    def register(function: StreamFunction) -> StreamFunction:
        taken = _REGISTRY.get(name)
        # The same function of a reloaded module (notebooks) may register again.
        if taken is not None and (taken.function.__module__, taken.function.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ValueError(f"stream {name!r} is already registered by {taken.function.__module__}")
        _REGISTRY[name] = Stream(name, kind, function)
        return function

    return register


def registered_streams(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the registered streams, of one kind or of both."""
    return tuple(name for name, stream in _REGISTRY.items() if kind in (None, stream.kind))


def get_stream(name: str) -> Stream:
    """The stream of a name.

    Raises:
        ValueError: no such stream.
    """
    if name not in _REGISTRY:
        known = ", ".join(registered_streams()) or "none; import the task's rewards module first"
        raise ValueError(f"unknown stream {name!r}, registered: {known}")
    return _REGISTRY[name]


def unregister_stream(name: str) -> None:
    """Forgets a stream.

    Raises:
        ValueError: no such stream.
    """
    get_stream(name)
    del _REGISTRY[name]


def compute_streams(
    names: Iterable[str], batch: SampledBatch, context: StreamContext, max_reply: int
) -> dict[str, StreamValues]:
    """Runs the named streams on a batch and checks what they return.

    Args:
        names: registered streams, in the order wanted.
        batch: sampled dialogues with S turns.
        context: database and ranges.
        max_reply: T, the longest reply a rollout can hold.

    Returns:
        Values by name, in the order of `names`.

    Raises:
        ValueError: an unknown stream, a reply longer than `max_reply`, or a wrong shape.
        NonFiniteStream: a value that is NaN or infinite.
    """
    streams = [get_stream(name) for name in names]
    longest = int(batch.lengths.max(initial=0))
    if longest > max_reply:
        raise ValueError(f"a sampled reply has {longest} tokens, max_reply is {max_reply}")
    return {stream.name: _checked(stream, batch, context) for stream in streams}


def _checked(stream: Stream, batch: SampledBatch, context: StreamContext) -> StreamValues:
    values = stream.function(batch, context)
    if not isinstance(values, StreamValues):
        raise ValueError(f"stream {stream.name!r} returned {type(values).__name__}, expected StreamValues")
    turns, longest = len(batch.turns), int(batch.lengths.max(initial=0))
    for name in ("reward", "applies", "score", "weight"):
        array = getattr(values, name)
        if array.shape != (turns,):
            raise ValueError(f"stream {stream.name!r}: {name} has shape {array.shape}, expected ({turns},)")
        _check_finite(stream, name, array, batch)
    if (values.weight < 0).any():
        raise ValueError(f"stream {stream.name!r}: weight has negative values, expected none")
    dense = values.token_reward
    if dense is not None:
        if dense.ndim != 2 or dense.shape[0] != turns or dense.shape[1] > longest:
            raise ValueError(
                f"stream {stream.name!r}: token_reward has shape {dense.shape}, expected ({turns}, at most {longest})"
            )
        _check_finite(stream, "token_reward", dense, batch)
    return values


def _check_finite(stream: Stream, name: str, array: np.ndarray, batch: SampledBatch) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        turn = batch.turns[int(bad[0][0])]
        raise NonFiniteStream(
            f"stream {stream.name!r}: {name} is {array[tuple(bad[0])]} for dialogue {turn.dialogue.id}, "
            f"turn {turn.turn.index}, expected finite values"
        )


@dataclass(frozen=True)
class StackedStreams:
    """All streams of a batch as the arrays of a rollout, H streams in the order of `names`.

    Attributes:
        names: H stream names.
        rewards: f32[S, T, H], dense rewards at their token, the others at the last token of the reply.
        applies: bool[S, H].
        scores: f32[S, H].
        weights: f32[S, H].
    """

    names: tuple[str, ...]
    rewards: np.ndarray
    applies: np.ndarray
    scores: np.ndarray
    weights: np.ndarray


def stack_streams(
    values: Mapping[str, StreamValues], lengths: Sequence[int] | np.ndarray, max_reply: int
) -> StackedStreams:
    """Stacks stream values into arrays.

    Args:
        values: stream values by name, as `compute_streams` returns them.
        lengths: i32[S], tokens per reply.
        max_reply: T.

    Returns:
        The arrays; a reward is 0 where its stream does not apply.
    """
    if not values:
        raise ValueError("no streams to stack, expected at least one")
    last = np.asarray(lengths, np.int64) - 1
    turns = np.arange(len(last))
    rewards = np.zeros((len(last), max_reply, len(values)), np.float32)
    for h, stream in enumerate(values.values()):
        if stream.token_reward is not None:
            rewards[:, : stream.token_reward.shape[1], h] = stream.token_reward
        rewards[turns, last, h] += stream.reward
        rewards[~stream.applies, :, h] = 0.0
    return StackedStreams(
        tuple(values),
        rewards,
        np.stack([v.applies for v in values.values()], -1),
        np.stack([v.score for v in values.values()], -1),
        np.stack([v.weight for v in values.values()], -1),
    )
