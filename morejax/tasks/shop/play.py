"""Plays complete dialogues between simulated users and an agent, all live ones side by side, one agent call a turn.

    contacts -> what users ask -> prompts -> agent -> claims -> state of mind -> next move -> ... -> outcomes

The agent is the only part that may be a model. Random numbers are looked up by (seed, day, dialogue, turn, purpose),
see `randomness`: two agents that say the same get the same outcome to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from morejax.tasks.shop import live
from morejax.tasks.shop.agents import Agent, LiveTurns
from morejax.tasks.shop.claims import parse
from morejax.tasks.shop.contacts import Contacts
from morejax.tasks.shop.context import Ids, Serialiser
from morejax.tasks.shop.live import Dialogues
from morejax.tasks.shop.observation import Turn, observe, transfers
from morejax.tasks.shop.ontology import FUNCTIONS
from morejax.tasks.shop.outcomes import conversion_probability, misinformed, price_gap, satisfaction
from morejax.tasks.shop.phrase_tables import build_tables
from morejax.tasks.shop.randomness import Purpose, bits, uniform
from morejax.tasks.shop.rewards import pad_replies
from morejax.tasks.shop.tokenizer import EOS, RESPONSE, build_tokenizer, decode, vocabulary
from morejax.tasks.shop.user_model import Move, Setting, update

MOST_TURNS = 10
"""A user who has still not decided then leaves."""


@dataclass(frozen=True)
class Outcomes:
    """How N dialogues went; a row each.

    Attributes:
        day: i32[N].
        credit: bool[N].
        eligible: bool[N], has a goal that the policy allows, as asked at first.
        reached: bool[N], stayed until the offer or the answer was delivered.
        offered: bool[N], the agent's last answer to the goal was yes.
        converted: bool[N], accepted the offer; with those regretted.
        regretted: bool[N], converted although ineligible, over the limit, or misinformed: the next three.
        ineligible, over_limit, misinformed: bool[N].
        handoff_right: bool[N], passed on a user who wanted a human anyway.
        handoff_failed: bool[N], any other: the user had lost trust or patience, or had not asked.
        left: bool[N], left without decision or hand-off.
        satisfaction: i32[N], 1 to 5, 0 where the survey was not answered.
        turns, response_tokens, reasoning_tokens: i32[N], totals.
        right, judged: i32[N, 6], replies that are right, and to which the function applies.
        agent_seconds: time of all the agent's calls.
        transcripts: texts of some dialogues.
    """

    day: np.ndarray
    credit: np.ndarray
    eligible: np.ndarray
    reached: np.ndarray
    offered: np.ndarray
    converted: np.ndarray
    regretted: np.ndarray
    ineligible: np.ndarray
    over_limit: np.ndarray
    misinformed: np.ndarray
    handoff_right: np.ndarray
    handoff_failed: np.ndarray
    left: np.ndarray
    satisfaction: np.ndarray
    turns: np.ndarray
    response_tokens: np.ndarray
    reasoning_tokens: np.ndarray
    right: np.ndarray
    judged: np.ndarray
    agent_seconds: float = 0.0
    transcripts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.day)

    @property
    def passed(self) -> np.ndarray:
        """bool[N]: every reply was right in every respect that applies."""
        return (self.right == self.judged).all(axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        values = {name.name: getattr(self, name.name) for name in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


@dataclass
class _Tally:
    """What is counted while dialogues are played."""

    turns: np.ndarray
    response_tokens: np.ndarray
    reasoning_tokens: np.ndarray
    right: np.ndarray
    judged: np.ndarray
    transcripts: list[list[str]]
    seconds: float = 0.0


def play(
    agent: Agent,
    contacts: Contacts,
    setting: Setting,
    *,
    serialiser: Serialiser | None = None,
    keep: int = 0,
    progress: Callable[[int], None] = lambda ended: None,
) -> Outcomes:
    """Plays all contacts to their end.

    Args:
        agent: called once a turn with all live dialogues.
        contacts: users and cases.
        setting: how users are moved.
        serialiser: makes the prompts; one with the default `ContextConfig` if None.
        keep: transcripts of so many dialogues.
        progress: is told after every turn how many dialogues have ended with it.

    Returns:
        Their outcomes, a pure function of the arguments but for `agent_seconds`.

    Raises:
        ValueError: the agent gives another number of replies than there are dialogues.
    """
    serialiser = serialiser or Serialiser()
    dialogues = live.start(contacts, setting, serialiser)
    tally = _empty_tally(len(contacts), keep)
    rows = np.arange(len(contacts))
    for turn in range(MOST_TURNS):
        _turn(turn, rows, agent, dialogues, tally)
        live_rows = rows[dialogues.move[rows] > Move.HANDED_OVER]
        progress(len(rows) - len(live_rows))
        rows = live_rows
        if not len(rows):
            break
    progress(len(rows))
    dialogues.move[rows] = Move.LEAVE
    return _outcomes(dialogues, tally)


def _empty_tally(count: int, keep: int) -> _Tally:
    def zeros(*more: int) -> np.ndarray:
        return np.zeros((count, *more), np.int32)

    kept = [[] for _ in range(min(keep, count))]
    return _Tally(zeros(), zeros(), zeros(), zeros(len(FUNCTIONS)), zeros(len(FUNCTIONS)), kept)


def _turn(turn: int, rows: np.ndarray, agent: Agent, dialogues: Dialogues, tally: _Tally) -> None:
    """One exchange of all live dialogues: rows i32[n] of the N."""
    asked = live.ask(dialogues, rows, turn)
    keys = bits(dialogues.contacts.keys[rows], turn, Purpose.AGENT)
    turns = LiveTurns(turn, asked.prompts, keys, asked.table, asked.gold)
    began = time.perf_counter()
    replies = agent(turns)
    tally.seconds += time.perf_counter() - began
    if len(replies) != len(rows):
        raise ValueError(f"the agent gave {len(replies)} replies to {len(rows)} dialogues, expected one each")
    reasoning, said = split_replies(replies)
    said = [reply[: dialogues.serialiser.config.max_reply] for reply in said]
    tokens, mask = pad_replies(said)
    heard = Turn(
        tokens=tokens,
        mask=mask,
        claims=parse(tokens, mask, build_tables()),
        gold=asked.gold,
        asked=asked.table.asked,
        upset=asked.table.upset,
        goal_asked=asked.goal_asked,
        credit=asked.table.case.domain == 0,
        repeated=live.same_reply(dialogues, rows, said),
    )
    _count(tally, rows, asked.texts, said, reasoning, mask)
    _hear(turn, rows, heard, dialogues, tally)


def split_replies(replies) -> tuple[list[int], list[Ids]]:
    """Number of reasoning tokens of each reply, and what is said to the user, cut before `<eos>`."""
    response, end = vocabulary()[RESPONSE], vocabulary()[EOS]
    reasoning, said = [], []
    for reply in replies:
        ids = tuple(int(token) for token in reply)
        thought = ids.index(response) + 1 if response in ids else 0
        ids = ids[thought:]
        reasoning.append(thought)
        said.append(ids[: ids.index(end)] if end in ids else ids)
    return reasoning, said


def _count(tally: _Tally, rows, texts: list[str], said: list[Ids], reasoning: list[int], mask: np.ndarray) -> None:
    tally.turns[rows] += 1
    tally.response_tokens[rows] += mask.sum(axis=1)
    tally.reasoning_tokens[rows] += np.array(reasoning, np.int32)
    for place in np.flatnonzero(rows < len(tally.transcripts)):
        reply = decode(build_tokenizer(), said[place])
        tally.transcripts[rows[place]] += [f"user: {texts[place]}", f"agent: {reply}"]


def _hear(turn: int, rows: np.ndarray, heard: Turn, dialogues: Dialogues, tally: _Tally) -> None:
    """The users take a reply in, and decide what to do."""
    setting = dialogues.setting
    notice = uniform(dialogues.contacts.keys[rows], turn, Purpose.NOTICE)
    seen, memory, verdict = observe(heard, live.rows_of(dialogues.memory, rows), notice, setting)
    tally.right[rows] += verdict.score.astype(np.int32)
    tally.judged[rows] += verdict.applies
    live.write(dialogues.memory, rows, memory)
    live.write(dialogues.latent, rows, update(live.rows_of(dialogues.latent, rows), seen, setting))
    gap = price_gap(heard.gold, dialogues.contacts.goal[rows], memory.discount, setting)
    dialogues.gap[rows] = gap
    live.decide(dialogues, rows, turn, heard, seen.answered, transfers(heard.claims))


def _outcomes(dialogues: Dialogues, tally: _Tally) -> Outcomes:
    contacts, setting, memory = dialogues.contacts, dialogues.setting, dialogues.memory
    ended = dialogues.move
    chance = conversion_probability(dialogues.latent, dialogues.gap, setting)
    offered = memory.decision == 1
    converted = (ended == Move.DECIDE) & offered & (uniform(contacts.keys, 0, Purpose.CONVERT) < chance)
    regret = {
        "ineligible": converted & memory.ineligible,
        "over_limit": converted & memory.over_limit,
        "misinformed": converted & misinformed(memory),
    }
    handed = ended == Move.HANDED_OVER
    right_handoff = handed & dialogues.wanted_human
    failed = handed & ~right_handoff
    reached = np.where(contacts.goal >= 0, memory.decided, dialogues.informed)
    noise, answers = (uniform(contacts.keys, 0, purpose) for purpose in (Purpose.SATISFACTION, Purpose.RESPOND))
    points = satisfaction(dialogues.latent, reached, failed, noise, setting)
    return Outcomes(
        day=contacts.day,
        credit=contacts.case.domain == 0,
        eligible=dialogues.eligible,
        reached=reached,
        offered=offered,
        converted=converted,
        regretted=regret["ineligible"] | regret["over_limit"] | regret["misinformed"],
        **regret,
        handoff_right=right_handoff,
        handoff_failed=failed,
        left=ended == Move.LEAVE,
        satisfaction=np.where(answers < setting.response, points, 0).astype(np.int32),
        turns=tally.turns,
        response_tokens=tally.response_tokens,
        reasoning_tokens=tally.reasoning_tokens,
        right=tally.right,
        judged=tally.judged,
        agent_seconds=tally.seconds,
        transcripts=tuple(map(tuple, tally.transcripts)),
    )
