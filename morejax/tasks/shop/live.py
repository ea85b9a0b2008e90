"""Dialogues under way: what each user asks next and in which words, and the prompts that the agent sees."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from morejax.tasks.shop import tokenizer, user_turns
from morejax.tasks.shop.answers import Gold, gold_answers
from morejax.tasks.shop.contacts import Contacts
from morejax.tasks.shop.context import Ids, Serialiser, aftersales_text, credit_text
from morejax.tasks.shop.dialogues import TurnTable
from morejax.tasks.shop.observation import Memory, Turn, empty_memory
from morejax.tasks.shop.ontology import INTENTS, REASONS, SLOTS, index
from morejax.tasks.shop.policy import limit_left
from morejax.tasks.shop.randomness import Purpose, bits, uniform
from morejax.tasks.shop.state import Case, Request, map_leaves, take, unpack
from morejax.tasks.shop.user_model import Latent, Move, Setting, Situation, first_latent, next_move
from morejax.tasks.shop.user_turns import UserRates
from morejax.tasks.shop.world import ITEM_NAMES, TENORS

Records = TypeVar("Records", bound=tuple)
RATES = UserRates()
STEP = 500
"""Users think in steps of so many cents."""
HUMAN, OBJECTION, SMALLTALK, BORROW = (index(INTENTS, name) for name in ("human", "objection", "smalltalk", "borrow"))
LIMIT = index(REASONS, "limit")
OF_REQUEST = np.array(
    [slot in ("amount", "tenor", "instalment", "last_instalment", "interest", "total_repay", "fee", "rate")
     for slot in SLOTS]
)  # fmt: skip
"""Slots whose value another request changes."""


@dataclass
class Dialogues:
    """N dialogues under way; arrays have a row each and change in place."""

    contacts: Contacts
    setting: Setting
    serialiser: Serialiser
    singles: list[Case]
    case: Case
    """Packed, with the request of the moment."""
    latent: Latent
    memory: Memory
    eligible: np.ndarray
    gap: np.ndarray
    move: np.ndarray
    place: np.ndarray
    """i32[N]: next question of the agenda."""
    asked: np.ndarray
    """bool[N, I]: the last question of the agenda, or the goal again."""
    objected: np.ndarray
    may_change: np.ndarray
    wanted_human: np.ndarray
    informed: np.ndarray
    stale: np.ndarray
    """bool[N]: the facts in the prompt show an earlier request."""
    facts: list[Ids]
    history: list[list[Ids]]
    last_reply: list[Ids | None]


class Asked(NamedTuple):
    """What the live users say in one turn, n rows."""

    table: TurnTable
    gold: Gold
    goal_asked: np.ndarray
    texts: list[str]
    prompts: tuple[Ids, ...]


def rows_of(records: Records, rows: np.ndarray) -> Records:
    """Copies of these rows."""
    return map_leaves(lambda leaf: leaf[rows], records)


def write(records: tuple, rows: np.ndarray, new: tuple) -> None:
    """Put new values into these rows of records of arrays."""
    for old, value in zip(records, new, strict=True):
        old[rows] = value


def start(contacts: Contacts, setting: Setting, serialiser: Serialiser) -> Dialogues:
    """Dialogues before anybody has spoken."""
    count, keys = len(contacts), contacts.keys
    purposes = (Purpose.TRUST, Purpose.PATIENCE, Purpose.UNDERSTANDING, Purpose.SENSITIVITY, Purpose.FIT)
    uniforms = {purpose.name.lower(): uniform(keys, 0, purpose) for purpose in purposes}
    goal_row = np.arange(len(INTENTS))[None, :] == contacts.goal[:, None]
    denied = gold_answers(contacts.case, goal_row).denied
    return Dialogues(
        contacts=contacts,
        setting=setting,
        serialiser=serialiser,
        singles=unpack(contacts.case),
        case=map_leaves(np.copy, contacts.case),
        latent=map_leaves(np.copy, first_latent(setting, uniforms, contacts.shift)),
        memory=map_leaves(np.copy, empty_memory(count)),
        eligible=(contacts.goal >= 0) & ~denied,
        gap=np.zeros(count),
        move=np.full(count, int(Move.ASK), np.int32),
        place=np.zeros(count, np.int32),
        asked=np.zeros((count, len(INTENTS)), bool),
        objected=np.zeros(count, bool),
        may_change=contacts.goal == BORROW,
        wanted_human=np.zeros(count, bool),
        informed=np.zeros(count, bool),
        stale=np.ones(count, bool),
        facts=[()] * count,
        history=[[] for _ in range(count)],
        last_reply=[None] * count,
    )


def ask(dialogues: Dialogues, rows: np.ndarray, turn: int) -> Asked:
    """The live users speak.

    Args:
        dialogues: all.
        rows: i32[n], the live ones.
        turn: 0-based.
    """
    _refresh_facts(dialogues, rows[dialogues.stale[rows]])
    move = dialogues.move[rows]
    earlier = Request(*(leaf[rows] for leaf in dialogues.case.request))
    _change_requests(dialogues, rows[move == Move.CHANGE], turn)
    asked = _intents(dialogues, rows, move)
    upset = _upset(dialogues, rows, turn) & ~asked[:, SMALLTALK]
    case = take(dialogues.case, rows)
    table = TurnTable(case, asked, upset, earlier)
    texts = _texts(dialogues, rows, turn, table, move == Move.CHANGE)
    prompts = _prompts(dialogues, rows, texts)
    goal = dialogues.contacts.goal[rows]
    goal_asked = asked[np.arange(len(rows)), np.maximum(goal, 0)] & (goal >= 0)
    return Asked(table, gold_answers(case, asked), goal_asked, texts, prompts)


def _intents(dialogues: Dialogues, rows: np.ndarray, move: np.ndarray) -> np.ndarray:
    """bool[n, I]: what is asked; the agenda moves on where its next question is."""
    contacts = dialogues.contacts
    place = dialogues.place[rows]
    from_agenda = contacts.agenda[rows, np.minimum(place, contacts.agenda.shape[1] - 1)]
    one_hot = np.eye(len(INTENTS), dtype=bool)
    goal = one_hot[np.maximum(contacts.goal[rows], 0)]
    for wanted, question in ((Move.ASK, from_agenda), (Move.CHANGE, goal)):
        chosen = move == wanted
        dialogues.asked[rows[chosen]] = question[chosen]
    dialogues.place[rows] = place + (move == Move.ASK)
    asked = dialogues.asked[rows]
    for wanted, intent in ((Move.OBJECT, OBJECTION), (Move.HUMAN, HUMAN), (Move.SMALLTALK, SMALLTALK)):
        asked = np.where((move == wanted)[:, None], one_hot[intent][None, :], asked)
    return asked


def _upset(dialogues: Dialogues, rows: np.ndarray, turn: int) -> np.ndarray:
    setting = dialogues.setting
    chance = setting.upset + setting.upset_impatience * (1.0 - dialogues.latent.patience[rows])
    return uniform(dialogues.contacts.keys[rows], turn, Purpose.UPSET) < chance


def _change_requests(dialogues: Dialogues, rows: np.ndarray, turn: int) -> None:
    """These users now want less, over other months; what was said of the earlier request no longer counts."""
    request, case = dialogues.case.request, take(dialogues.case, rows)
    left = np.minimum(limit_left(case), case.request.amount // 2)
    request.amount[rows] = np.maximum(left // STEP * STEP, case.product.min_draw)
    which = bits(dialogues.contacts.keys[rows], turn, Purpose.CHANGE) % np.uint64(len(TENORS))
    request.tenor[rows] = np.array(TENORS)[which.astype(int)]
    memory = dialogues.memory
    memory.decision[rows] = -1
    memory.told_right[rows] &= ~OF_REQUEST[None, :]
    memory.told_wrong[rows] &= ~OF_REQUEST[None, :]
    dialogues.may_change[rows] = False
    dialogues.stale[rows] = True


def _texts(dialogues: Dialogues, rows, turn: int, table: TurnTable, changed: np.ndarray) -> list[str]:
    """What each user says; its wording depends on the dialogue's own stream alone."""
    seeds = bits(dialogues.contacts.keys[rows], turn, Purpose.WORDING).tolist()
    amounts, tenors = (leaf.tolist() for leaf in table.case.request)
    texts = []
    for at, row in enumerate(rows.tolist()):
        rng, order = random.Random(seeds[at]), dialogues.singles[row].order
        values = {
            "amount": user_turns.user_amount(amounts[at], rng),
            "tenor": str(tenors[at]),
            "item": ITEM_NAMES[order.item],
            "order_number": str(order.number),
        }
        intents = [INTENTS[intent] for intent in np.flatnonzero(table.asked[at])]
        how = {"first": turn == 0, "changed": bool(changed[at]), "upset": bool(table.upset[at])}
        texts.append(user_turns.utterance(intents, values, rng, RATES, **how))
    return texts


def _refresh_facts(dialogues: Dialogues, rows: np.ndarray) -> None:
    """Policy and customer as tokens, for dialogues whose request has changed; a policy is encoded once."""
    if not len(rows):
        return
    parts = []
    for row in rows.tolist():
        case, request = dialogues.singles[row], Request(*(int(leaf[row]) for leaf in dialogues.case.request))
        parts.append(credit_text(case, request) if case.domain == 0 else aftersales_text(case))
    encode, token = dialogues.serialiser.encode, dialogues.serialiser.token
    distinct = list(dict.fromkeys(policy for policy, _ in parts))
    policies = dict(zip(distinct, encode(distinct), strict=True))
    customers = encode([customer for _, customer in parts])
    for row, (policy, _), customer in zip(rows.tolist(), parts, customers, strict=True):
        head, middle = token(tokenizer.POLICY), token(tokenizer.PROFILE)
        dialogues.facts[row] = (head, *policies[policy], middle, *customer)
    dialogues.stale[rows] = False


def _prompts(dialogues: Dialogues, rows: np.ndarray, texts: list[str]) -> tuple[Ids, ...]:
    """Prompts with the recent utterances; the new ones join the history."""
    serialiser = dialogues.serialiser
    prompts = []
    for row, ids in zip(rows.tolist(), serialiser.encode(texts), strict=True):
        dialogues.history[row].append(serialiser.asked(ids))
        prompts.append(serialiser.prompt(dialogues.facts[row], dialogues.history[row]))
    return tuple(prompts)


def same_reply(dialogues: Dialogues, rows: np.ndarray, said: list[Ids]) -> np.ndarray:
    """bool[n]: is it the dialogue's reply before, word for word? The replies join the history."""
    same = [dialogues.last_reply[row] == reply for row, reply in zip(rows.tolist(), said, strict=True)]
    for row, reply in zip(rows.tolist(), said, strict=True):
        dialogues.last_reply[row] = reply
        dialogues.history[row].append(dialogues.serialiser.answered(reply))
    return np.array(same)


def decide(
    dialogues: Dialogues, rows: np.ndarray, turn: int, heard: Turn, answered: np.ndarray, transferred: np.ndarray
) -> None:
    """Every user decides what to do next, after the reply has been taken in.

    Args:
        dialogues: all.
        rows: i32[n], the live ones.
        turn: 0-based.
        heard: the reply.
        answered: f[n], share of the question that it answered.
        transferred: bool[n], did it pass the user on?
    """
    setting, keys = dialogues.setting, dialogues.contacts.keys[rows]
    latent = rows_of(dialogues.latent, rows)
    names = ("give_up", "human", "repeat", "object", "change", "smalltalk")
    uniforms = {name: uniform(keys, turn, Purpose[name.upper()]) for name in names}
    now = _situation(dialogues, rows, heard, answered, transferred)
    move = next_move(latent, now, uniforms, setting)
    first_question = dialogues.asked[rows] == dialogues.contacts.agenda[rows, 0]
    dialogues.informed[rows] |= first_question.all(axis=1) & (answered >= 1.0)
    fed_up = (latent.trust < setting.human_trust) | (latent.patience < setting.human_patience)
    dialogues.wanted_human[rows] |= (move == Move.HUMAN) & ~fed_up
    dialogues.objected[rows] |= move == Move.OBJECT
    dialogues.move[rows] = move


def _situation(dialogues: Dialogues, rows, heard: Turn, answered, transferred) -> Situation:
    contacts, setting, move = dialogues.contacts, dialogues.setting, dialogues.move[rows]
    claims = heard.claims
    yes, no = claims.approves & ~claims.denies, claims.denies & ~claims.approves
    case = take(dialogues.case, rows)
    return Situation(
        transferred=transferred,
        asked_human=move == Move.HUMAN,
        wants_human=uniform(contacts.keys[rows], 0, Purpose.WANTS_HUMAN) < setting.wants_human,
        unanswered=answered < 0.5,
        repeated=move == Move.REPEAT,
        offered=heard.goal_asked & yes,
        objected=dialogues.objected[rows],
        refused_limit=heard.goal_asked & no & claims.reasons[:, LIMIT] & (limit_left(case) >= case.product.min_draw),
        may_change=dialogues.may_change[rows] & (case.request.amount > case.product.min_draw),
        more=dialogues.place[rows] < contacts.questions[rows],
        price_gap=dialogues.gap[rows],
    )
