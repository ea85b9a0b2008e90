"""The standard MultiWOZ scorer: Inform, Success, BLEU, lexical richness and dialogue state tracking.

Source: Nekvinda and Dusek, "Shades of BLEU, Flavours of Success: The Case of MultiWOZ" (GEM 2021), and the
numbers of the tool published with it. `score` rates a file of predictions; `score_dialogue` rates one
dialogue, fast enough for a reward.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from sacrebleu import corpus_bleu

from morejax.tasks.multiwoz.canonical import MATCHED_DOMAINS, REQUESTABLES, VENUE_DOMAINS
from morejax.tasks.multiwoz.metrics import ScoringError, richness, state_tracking
from morejax.tasks.multiwoz.normalise import (
    mentions,
    normalise_predicted_state,
    normalise_response,
    unknown_placeholders,
)
from morejax.tasks.multiwoz.scoring_data import (
    ScoringData,
    derive_scoring_data,
    has_scoring_data,
    load_scoring_data,
)

if TYPE_CHECKING:
    from morejax.tasks.multiwoz.database import Database
    from morejax.tasks.multiwoz.records import Goal, State

__all__ = [
    "DialogueScore",
    "Prediction",
    "ScoringData",
    "ScoringError",
    "TurnScore",
    "derive_scoring_data",
    "estimate_domains",
    "has_scoring_data",
    "judge",
    "load_scoring_data",
    "score",
    "score_dialogue",
]

logger = logging.getLogger(__name__)


class Prediction(TypedDict):
    """Prediction for one system turn, in the standard format.

    Attributes:
        response: delexicalised reply, placeholders in any published spelling.
        state: predicted belief state; the gold state is used if any turn of the predictions lacks it.
        active_domains: domains the reply is about; estimated from the states if any turn of the predictions
            lacks them.
    """

    response: str
    state: NotRequired[dict[str, dict[str, str]]]
    active_domains: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class TurnScore:
    """What a turn contributes to Inform and Success.

    Attributes:
        domains: active domains that the goal has.
        mentioned: upper-case placeholders credited in this turn: requestables, and NAME or TRAINID where it
            is an offer.
        offered: domains in which the turn makes an offer.
    """

    domains: tuple[str, ...]
    mentioned: frozenset[str]
    offered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DialogueScore:
    """Inform and Success of one dialogue.

    Attributes:
        inform: every domain matches.
        success: Inform, and everything requested is provided.
        domains_inform: domain -> what was offered last matches the goal.
        domains_success: domain -> Inform of the *dialogue*, and everything requested in this domain is
            provided.
        domains_provided: domain -> everything requested in this domain is provided, whatever Inform says.
        turns: one entry per turn.
    """

    inform: bool
    success: bool
    domains_inform: dict[str, bool]
    domains_success: dict[str, bool]
    domains_provided: dict[str, bool]
    turns: tuple[TurnScore, ...]


# One dialogue


def score_dialogue(
    predictions: Sequence[Prediction],
    goal: Goal,
    booked: Sequence[Sequence[str]],
    database: Database,
    gold_states: Sequence[State] | None = None,
) -> DialogueScore:
    """Standard Inform and Success of one dialogue.

    States and active domains are taken from the predictions if every turn has them; otherwise the gold states
    are used and the domains estimated. To score many replies to the same dialogue, pass ``active_domains``
    computed once with `estimate_domains`.

    Args:
        predictions: one per system turn; turns beyond the end of ``booked`` or of the states do not count.
        goal: the user's goal.
        booked: per turn, the domains booked by then (a reference number counts only then).
        database: answers the queries of states and goal.
        gold_states: per turn, normalised; used as they are.

    Returns:
        Scores of the dialogue, of its domains and of its turns.

    Raises:
        ScoringError: no states, or a value that the standard cannot read.
    """
    try:
        states = _predicted_states(predictions)
        if states is None:
            states = gold_states
        if states is None:
            raise ScoringError("a turn has no predicted state, and no gold states are given")
        domains = _predicted_domains(predictions)
        if domains is None:
            domains = estimate_domains(states)
        found = [mentions(turn["response"]) for turn in predictions]
        return judge(found, states, domains, goal, booked, database)
    except ScoringError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScoringError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else str(error)


def _predicted_states(predictions: Sequence[Prediction]) -> list[State] | None:
    states = [normalise_predicted_state(turn["state"]) for turn in predictions if "state" in turn]
    return states if len(states) == len(predictions) else None


def _predicted_domains(predictions: Sequence[Prediction]) -> Sequence[Sequence[str]] | None:
    domains = [turn["active_domains"] for turn in predictions if "active_domains" in turn]
    return domains if len(domains) == len(predictions) else None


def judge(
    mentioned: Sequence[frozenset[str]],
    states: Sequence[State],
    domains: Sequence[Sequence[str]],
    goal: Goal,
    booked: Sequence[Sequence[str]],
    database: Database,
) -> DialogueScore:
    """Inform and Success from what the turns mention; the core of `score_dialogue`.

    Args:
        mentioned: per turn, `mentions` of the response.
        states: per turn, the normalised state.
        domains: per turn, the active domains.
        goal: the user's goal.
        booked: per turn, the domains booked by then.
        database: answers the queries.
    """
    offers = dict.fromkeys(goal, 0)
    provided: dict[str, set[str]] = {domain: set() for domain in goal}
    turns = []
    for said, state, active, bookings in zip(mentioned, states, domains, booked, strict=False):
        present = tuple(domain for domain in goal if domain in active)
        offered = tuple(domain for domain in present if _offers(domain, said))
        for domain in offered:
            found = database.venue_bits(domain, state[domain]) if domain in state else 0
            # An offer stands as long as it is part of what the state leaves.
            if not offers[domain] or offers[domain] & ~found:
                offers[domain] = found
        credited: set[str] = set()
        for domain in present:
            now = said & _REQUESTABLES
            if domain not in bookings:
                now -= _REFERENCE
            provided[domain] |= now
            credited |= now
        credited.update("TRAINID" if domain == "train" else "NAME" for domain in offered)
        turns.append(TurnScore(present, frozenset(credited), offered))
    return _verdict(goal, offers, provided, tuple(turns), database)


_REQUESTABLES = frozenset(REQUESTABLES)
_REFERENCE = frozenset({"REFERENCE"})


def _offers(domain: str, said: frozenset[str]) -> bool:
    return domain in VENUE_DOMAINS and ("TRAINID" if domain == "train" else "NAME") in said


def _verdict(
    goal: Goal,
    offers: Mapping[str, int],
    provided: Mapping[str, set[str]],
    turns: tuple[TurnScore, ...],
    database: Database,
) -> DialogueScore:
    matches = {domain: _matches(domain, goal, offers[domain], database) for domain in goal}
    inform = all(matches.values())
    complete = {domain: provided[domain].issuperset(goal[domain]["requestable"]) for domain in goal}
    success = {domain: inform and complete[domain] for domain in goal}
    return DialogueScore(inform, inform and all(success.values()), matches, success, complete, turns)


def _matches(domain: str, goal: Goal, offer: int, database: Database) -> bool:
    wanted = goal[domain]
    if "name" in wanted["informable"] or domain in MATCHED_DOMAINS:
        return True
    if not offer:
        # No train had to be found if its number is not asked for.
        return domain == "train" and "TRAINID" not in wanted["requestable"]
    return not offer & ~database.venue_bits(domain, wanted["informable"])


def estimate_domains(states: Sequence[State]) -> list[tuple[str, ...]]:
    """Active domain of every turn, from the change of the state since the turn before.

    A domain changed if it has a new slot or value. The current domain stays if it changed or nothing did;
    otherwise the changed domain with most slots takes over. If several domains changed in the turn before and
    nothing does now, the first other one of them takes over.

    Args:
        states: per turn, the normalised state.

    Returns:
        Per turn, a tuple of one domain; empty until the first change.
    """
    current: str | None = None
    before: State = {}
    changed_before: list[str] = []
    estimates: list[tuple[str, ...]] = []
    for state in states:
        changed = [d for d in state if not state[d].items() <= before.get(d, {}).items()]
        if changed and current not in changed:
            current = max(changed, key=lambda domain: len(state[domain]))
        elif not changed and len(changed_before) > 1:
            others = [domain for domain in changed_before if domain in state and domain != current]
            current = others[0] if others else current
        before, changed_before = state, changed
        estimates.append(() if current is None else (current,))
    return estimates


# A file of predictions


def score(
    predictions: Mapping[str, Sequence[Prediction]],
    references: ScoringData,
    database: Database,
    *,
    with_dst: bool | Literal["auto"] = "auto",
) -> dict[str, Any]:
    """All numbers of the standard, over the dialogues predicted.

    Args:
        predictions: dialogue id (lower case, without ``.json``) -> one prediction per system turn.
        references: what to score against; it may hold more dialogues.
        database: answers the queries.
        with_dst: whether to score states; ``"auto"`` does so if every turn has one.

    Returns:
        ``bleu``, ``inform``, ``success`` and ``combined`` (= (inform + success) / 2 + bleu), in percent;
        ``per_domain`` (inform and success of each domain and in total, to one decimal as the standard gives
        them); ``richness``; ``dst`` (None if not scored); ``dialogues`` and ``turns``.

    Raises:
        ScoringError: naming the dialogue, where the standard fails: an unknown dialogue, more turns than the
        dialogue has,
            a prediction not of the standard format, a value that cannot be read; also if nothing is
            predicted.
    """
    _check(predictions, references)
    states = _all_states(predictions)
    if with_dst is True and states is None:
        raise ScoringError("state tracking cannot be scored: not every turn has a predicted state")
    responses = {i: [normalise_response(turn["response"]) for turn in turns] for i, turns in predictions.items()}
    _report_unknown(predictions)
    judged = _judge_all(predictions, states, references, database)
    per_domain = _rates(judged)
    bleu = _bleu(responses, references.references)
    inform, success = (per_domain[kind]["total"] for kind in ("inform", "success"))
    return {
        "bleu": bleu,
        "inform": inform,
        "success": success,
        "combined": (inform + success) / 2 + bleu,
        "per_domain": per_domain,
        "richness": richness(text for turns in responses.values() for text in turns),
        "dst": state_tracking(states, references.gold_states) if states is not None and with_dst else None,
        "dialogues": len(predictions),
        "turns": sum(map(len, predictions.values())),
    }


def _check(predictions: Mapping[str, Sequence[Prediction]], references: ScoringData) -> None:
    if not isinstance(predictions, Mapping):
        raise ScoringError(f"predictions are {_kind(predictions)}, expected an object {{dialogue id: [turn, ...]}}")
    for dialogue, turns in predictions.items():
        if not references.has(dialogue):
            raise ScoringError(
                f"dialogue {dialogue!r} is not among the {len(references.goals)} dialogues scored against; "
                f"expected lower-case ids without .json, such as {next(iter(references.goals), 'sng0073')!r}"
            )
        if not isinstance(turns, Sequence) or isinstance(turns, str):
            raise ScoringError(f"dialogue {dialogue!r}: found {_kind(turns)}, expected a list of turns")
        expected = len(references.references[dialogue])
        if len(turns) > expected:
            raise ScoringError(f"dialogue {dialogue!r}: {len(turns)} turns predicted, but it has {expected}")
        for number, turn in enumerate(turns):
            _check_turn(turn, f"dialogue {dialogue!r}, turn {number}")
    if not any(predictions.values()):
        raise ScoringError("no turn is predicted; expected at least one dialogue with one turn")


def _check_turn(turn: Any, where: str) -> None:
    if not isinstance(turn, Mapping):
        raise ScoringError(f'{where}: found {_kind(turn)}, expected an object with "response"')
    if not isinstance(turn.get("response"), str):
        raise ScoringError(f'{where}: "response" is {turn.get("response")!r}, expected text')
    if "active_domains" in turn and not isinstance(turn["active_domains"], list | tuple | str):
        raise ScoringError(f'{where}: "active_domains" is {turn["active_domains"]!r}, expected a list of domains')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _all_states(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, list[State]] | None:
    """Normalised states; None if any turn has none, as the standard then uses gold states throughout."""
    complete = all("state" in turn for turns in predictions.values() for turn in turns)
    states = {}
    for dialogue, turns in predictions.items():
        try:
            # Normalised, and so checked, even where they are not used, as in the standard.
            states[dialogue] = [normalise_predicted_state(turn["state"]) for turn in turns if "state" in turn]
        except (ValueError, AttributeError) as error:
            raise ScoringError(f"dialogue {dialogue!r}: {error}") from error
    return states if complete else None


def _judge_all(
    predictions: Mapping[str, Sequence[Prediction]],
    states: Mapping[str, Sequence[State]] | None,
    references: ScoringData,
    database: Database,
) -> list[DialogueScore]:
    states = references.gold_states if states is None else states
    predicted = {dialogue: _predicted_domains(turns) for dialogue, turns in predictions.items()}
    estimate = None in predicted.values()
    judged = []
    for dialogue, turns in predictions.items():
        used = states[dialogue][: len(turns)]
        goal, booked = references.goals[dialogue], references.booked[dialogue]
        try:
            domains = estimate_domains(used) if estimate else predicted[dialogue] or ()
            found = [mentions(turn["response"]) for turn in turns]
            judged.append(judge(found, used, domains, goal, booked, database))
        except (ValueError, TypeError) as error:
            raise ScoringError(f"dialogue {dialogue!r}: {error}") from error
    return judged


def _rates(judged: Sequence[DialogueScore]) -> dict[str, dict[str, float]]:
    """Percent of dialogues, in total and of those whose goal has the domain, to one decimal."""
    total: Counter[str] = Counter()
    inform: Counter[str] = Counter()
    success: Counter[str] = Counter()
    for dialogue in judged:
        total.update(["total", *dialogue.domains_inform])
        inform.update({"total": dialogue.inform, **dialogue.domains_inform})
        success.update({"total": dialogue.success, **dialogue.domains_success})
    rates = {"inform": inform, "success": success}
    return {kind: {d: round(100 * count[d] / total[d], 1) for d in total} for kind, count in rates.items()}


def _bleu(responses: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]]) -> float:
    """sacrebleu corpus BLEU (13a tokens, exponential smoothing)."""
    hypotheses = [text for turns in responses.values() for text in turns]
    gold = [text for i, turns in responses.items() for text in references[i][: len(turns)]]
    # `force` only silences the warning that the text looks tokenised.
    return corpus_bleu(hypotheses, [gold], force=True).score


def _report_unknown(predictions: Mapping[str, Sequence[Prediction]]) -> None:
    unknown = Counter(
        name for turns in predictions.values() for turn in turns for name in unknown_placeholders(turn["response"])
    )
    if unknown:
        names = ", ".join(f"[{name}] ({count})" for name, count in unknown.most_common())
        logger.warning("placeholders unknown to the standard are removed: %s", names)
