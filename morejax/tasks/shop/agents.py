"""Agents to play with: the oracle, trained models, and simple ones that a good agent must beat.

An agent is any function from the live dialogues of a turn to one reply each. It is called once a turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from morejax.models.split import Params
from morejax.tasks.shop.answers import Gold
from morejax.tasks.shop.context import Ids
from morejax.tasks.shop.dialogues import TurnTable, as_questions
from morejax.tasks.shop.ontology import DECISIONS, DISCLOSURES
from morejax.tasks.shop.oracle import HumanRates, Question, human_reply, oracle_reply, plan_reply, word_reply
from morejax.tasks.shop.policy import APPROVED_ACTIONS, APPROVED_MUST_SAY
from morejax.tasks.shop.randomness import Keys
from morejax.tasks.shop.tokenizer import CONTROL, EOS, REASONING, build_tokenizer, encode_batch, vocabulary
from morejax.training.generate import Generator


@dataclass(frozen=True)
class LiveTurns:
    """All live dialogues in one turn, a row each.

    Attributes:
        turn: 0-based number, the same for all.
        prompts: what a model sees, each ends with `<response>`.
        keys: uint64[N], the agent's own randomness: a number for each dialogue and turn.
        table: the hidden truth, for agents that may cheat.
        gold: right answers, likewise.
    """

    turn: int
    prompts: tuple[Ids, ...]
    keys: Keys
    table: TurnTable
    gold: Gold

    def questions(self) -> list[Question]:
        """Every turn with the right answer, as oracles see it."""
        return as_questions(self.table, self.gold)


Agent = Callable[[LiveTurns], Sequence[Ids]]
"""One reply, token ids, for each live dialogue; `<eos>` may be left out. What stands before a `<response>` in it is
reasoning: it is counted, and no user sees it."""


def _worded(word: Callable[[Question, random.Random], str]) -> Agent:
    """An agent from a function of one question and a source of randomness."""

    def agent(turns: LiveTurns) -> Sequence[Ids]:
        pairs = zip(turns.questions(), turns.keys.tolist(), strict=True)
        return encode_batch(build_tokenizer(), [word(question, random.Random(key)) for question, key in pairs])

    return agent


oracle_agent: Agent = _worded(oracle_reply)
"""The policy's answer in good words; stands for the best human agent."""


def human_agent(rates: HumanRates | None = None) -> Agent:
    """The corpus's human agents, who err at these rates."""
    chosen = rates or HumanRates()
    return _worded(lambda question, rng: human_reply(question, rng, chosen))


def _curt(question: Question, rng: random.Random) -> str:
    first = question._replace(asked=question.asked[:1])
    plan = replace(plan_reply(question), kind=False, disclosures=(), actions=())
    return word_reply(first, plan, rng)


curt_agent: Agent = _worded(_curt)
"""Right about the first question; no second answer, no disclosure, no action, no kind word."""


def _always_yes(question: Question, rng: random.Random) -> str:
    decision = next((intent for intent in question.asked if intent in DECISIONS), "")
    plan = plan_reply(question)
    if decision and plan.denied:
        said = [name for name in DISCLOSURES if name == APPROVED_MUST_SAY[decision]]
        done = [name for name in (APPROVED_ACTIONS[decision],) if name]
        plan = replace(plan, denied=False, reason="", disclosures=tuple(said), actions=tuple(done))
    return word_reply(question, plan, rng)


yes_agent: Agent = _worded(_always_yes)
"""The oracle, but for one thing: whatever the policy says, the answer is yes."""


def random_agent(length: int = 24) -> Agent:
    """Random words, `length` of them."""
    words = np.array([number for token, number in vocabulary().items() if token not in CONTROL])

    def agent(turns: LiveTurns) -> Sequence[Ids]:
        draws = [np.random.default_rng(key).integers(0, len(words), length) for key in turns.keys]
        return [tuple(words[draw].tolist()) for draw in draws]

    return agent


def model_agent(generator: Generator, params: Params, *, reasons: bool = False, seed: int = 0) -> Agent:
    """A trained model.

    At temperature 0 its replies depend on the prompts alone. At other temperatures they also depend on which dialogues
    are still live, so that arms are coupled by the users' randomness, but not by the models' own.

    Args:
        generator: with the sampler's settings.
        params: of the model.
        reasons: is it a scaffold that reasons before it answers?
        seed: of the sampler.
    """
    reasoning, end = vocabulary()[REASONING], vocabulary()[EOS]

    def agent(turns: LiveTurns) -> Sequence[Ids]:
        prompts = [(*prompt[:-1], reasoning) for prompt in turns.prompts] if reasons else turns.prompts
        replies = generator(params, prompts, seed=seed * 1_000 + turns.turn)
        return [reply if reply else (end,) for reply in replies]

    return agent
