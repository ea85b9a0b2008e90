"""From dialogues to token ids: policy and customer as text, recent utterances, the reasoning, the reply.

One prompt per agent turn, and what is written after it::

    <policy> rules and terms in force  <profile> the customer  <user> u  <response> r <eos>  <user> u_t
    [<reasoning> trace]  <response> reply <eos>

The reasoning is there for the scaffold only. Policy and customer are never cut; of the dialogue the oldest goes first.
Earlier replies stand there as they were written, so that a whole dialogue is one sequence to learn from: policy and
customer, most of a prompt, are then read once for all of its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from morejax.tasks.shop import ontology, policy, tokenizer
from morejax.tasks.shop.dialogues import ShopDialogue, ShopSplit
from morejax.tasks.shop.ontology import date_text, money_text, percent_text
from morejax.tasks.shop.reasoning_trace import reasoning_trace
from morejax.tasks.shop.state import Case, Request
from morejax.tasks.shop.world import ITEM_NAMES, PRODUCT_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = tuple[int, ...]


class PromptTooLong(ValueError):
    """Policy, customer and reasoning, which are never cut, leave no room for what the user says."""


@dataclass(frozen=True)
class ContextConfig:
    """What the model sees of a dialogue.

    Attributes:
        history: most recent utterances, the current one of the user included.
        max_context: most tokens of a prompt without reasoning.
        max_reasoning: most tokens of a reasoning trace; longer ones are cut at the end.
        max_reply: most tokens of a reply, `<eos>` included; longer ones are cut.
    """

    history: int = 3
    max_context: int = 352
    max_reasoning: int = 128
    max_reply: int = 96

    def __post_init__(self) -> None:
        for name in ("history", "max_context", "max_reasoning", "max_reply"):
            if getattr(self, name) < 1:
                raise ValueError(f"--context.{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class TurnPrompts:
    """The prompts of one agent turn: `direct` for the policy, `reasoned` for the scaffold, and the corpus's reply."""

    dialogue: ShopDialogue
    turn: int
    row: int
    direct: Ids
    reasoned: Ids
    reference: Ids


@dataclass(frozen=True)
class Example:
    """Agent turns to learn from, the first of them `turn`; `target_mask` marks what the model writes: the replies, with
    reasoning that too."""

    dialogue_id: str
    turn: int
    sequence: Ids
    target_mask: tuple[bool, ...]


class _Turn(NamedTuple):
    """A turn as tokens: facts with their markers, what the user and the agent say without."""

    facts: Ids
    user: Ids
    reply: Ids


Fields = tuple[tuple[str, str], ...]
"""Names and values, in the order in which a prompt has them."""


def credit_fields(case: Case, request: Request) -> tuple[Fields, Fields]:
    """Terms and customer of a credit case."""
    product, profile = case.product, case.profile
    terms = (
        ("product", PRODUCT_NAMES[product.name]),
        ("rate", percent_text(product.monthly_bp)),
        ("fee", percent_text(product.fee_bp)),
        ("late", percent_text(product.late_bp)),
        ("grace", str(product.grace_days)),
        ("due", str(product.due_days)),
        ("draw", f"{money_text(product.min_draw)} to {money_text(product.max_draw)}"),
        ("promo", percent_text(product.promo_bp)),
        ("from", date_text(product.promo_start)),
        ("until", date_text(product.promo_end)),
    )
    customer = (
        ("today", date_text(case.today)),
        ("wants", f"{money_text(request.amount)} , {request.tenor} months"),
        ("tier", ontology.TIERS[profile.tier]),
        ("age", str(profile.age)),
        ("region", ontology.REGIONS[profile.region]),
        ("", ontology.KYC[profile.kyc]),
        ("score", str(profile.score)),
        ("loans", str(profile.open_loans)),
        ("limit", money_text(profile.limit)),
        ("used", money_text(profile.used)),
        ("held", money_text(profile.held)),
        ("overdue", f"{profile.overdue_days} {money_text(profile.overdue_cents)}"),
        ("bill", f"{money_text(profile.bill_cents)} , {date_text(profile.bill_day)}"),
    )
    return terms, customer


def aftersales_fields(case: Case) -> tuple[Fields, Fields]:
    """Terms and customer of an aftersales case."""
    order, profile, figures = case.order, case.profile, policy.rule_figures(case.rules)
    terms = (
        ("return", f"{figures['return_days']} days"),
        ("electronics", figures["electronics_days"]),
        ("gold", figures["gold_extra_days"]),
        ("extra cost", f"{figures['return_cost']} gold free ."),
        ("refund", f"{figures['refund_days']} days ."),
        ("shipping", f"{figures['shipping_fee']} free from {figures['free_shipping_over']} gold free ."),
        ("membership", f"{figures['member_fee']} ."),
        ("restocking electronics", percent_text(case.rules.restock_bp)),
    )
    status = ontology.STATUSES[order.status]
    days = {"delivered": order.delivered, "processing": order.eta, "shipped": order.eta}
    member = profile.member_until >= case.today
    customer = (
        ("today", date_text(case.today)),
        ("tier", ontology.TIERS[profile.tier]),
        ("order", str(order.number)),
        ("item", f"{ITEM_NAMES[order.item]} {ontology.CATEGORIES[order.category]}"),
        ("price", money_text(order.price)),
        ("paid", "card" if order.paid_by == 0 else "credit account"),
        (status, date_text(days[status]) if status in days else ""),
        *((("", "opened"),) if order.opened else ()),
        ("refund", date_text(order.refund_day) if order.refund_state else "no"),
        ("member", f"{date_text(profile.member_until)} {profile.member_until - case.today} days" if member else "no"),
    )
    return terms, customer


def _text(fields: Fields) -> str:
    return " ".join(" ".join(filter(None, field)) for field in fields)


def credit_text(case: Case, request: Request) -> tuple[str, str]:
    """Policy and customer of a credit case, in words."""
    terms, customer = credit_fields(case, request)
    rules = policy.policy_text(case.rules, ("borrow", "raise_limit", "promo"))
    return f"{rules} . {_text(terms)}", _text(customer)


def aftersales_text(case: Case) -> tuple[str, str]:
    """Policy and customer of an aftersales case, in words."""
    terms, customer = aftersales_fields(case)
    return f"{policy.policy_text(case.rules, ('return', 'cancel'))} . {_text(terms)}", _text(customer)


class Serialiser:
    """Turns dialogues of the shop into token ids.

    Args:
        config: lengths.
    """

    def __init__(self, config: ContextConfig | None = None) -> None:
        self.config = config or ContextConfig()
        self.tokenizer: PreTrainedTokenizerFast = tokenizer.build_tokenizer()
        self._id = {token: tokenizer.vocabulary()[token] for token in tokenizer.CONTROL}

    def token(self, name: str) -> int:
        """Id of a control token, for example `token("<response>")`."""
        return self._id[name]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts; control tokens in them are read as plain text."""
        return tokenizer.encode_batch(self.tokenizer, [_plain(text) for text in texts])

    def prompts(self, split: ShopSplit, dialogues: Sequence[ShopDialogue] | None = None) -> list[list[TurnPrompts]]:
        """Prompts of all turns of whole dialogues, the history being the corpus's own.

        Args:
            split: where the dialogues come from.
            dialogues: those wanted; all by default.

        Raises:
            PromptTooLong: see there.
        """
        chosen = split.dialogues if dialogues is None else dialogues
        questions = split.questions()
        traces = iter(self.encode([reasoning_trace(questions[turn.row]) for d in chosen for turn in d.turns]))
        made: list[list[TurnPrompts]] = []
        for dialogue, turns in zip(chosen, self._encoded(split, chosen), strict=True):
            made.append([])
            for turn, encoded in zip(dialogue.turns, turns, strict=True):
                direct = self._prompt_of(turns, turn.index)
                reasoned = self.reasoned(direct, next(traces))
                reply = self.reply_ids(encoded.reply)
                made[-1].append(TurnPrompts(dialogue, turn.index, turn.row, direct, reasoned, reply))
        return made

    def _encoded(self, split: ShopSplit, dialogues: Sequence[ShopDialogue]) -> list[list[_Turn]]:
        """The turns of each dialogue as tokens."""
        turns = [turn for dialogue in dialogues for turn in dialogue.turns]
        facts = self.facts(split, [turn.row for turn in turns])
        users, replies = (self.encode(texts) for texts in zip(*((t.user, t.response) for t in turns), strict=True))
        each = map(_Turn, facts, users, replies)
        return [[next(each) for _ in dialogue.turns] for dialogue in dialogues]

    def _prompt_of(self, turns: Sequence[_Turn], index: int) -> Ids:
        said = [ids for turn in turns[:index] for ids in (self.asked(turn.user), self.answered(turn.reply))]
        return self.prompt(turns[index].facts, [*said, self.asked(turns[index].user)])

    def facts(self, split: ShopSplit, rows: Sequence[int]) -> list[Ids]:
        """`<policy> ... <profile> ...` of each row; a policy is encoded once."""
        questions, earlier = split.questions(), split.table.earlier
        parts = []
        for row in rows:
            case = questions[row].case
            before = Request(int(earlier.amount[row]), int(earlier.tenor[row]))
            parts.append(credit_text(case, before) if case.domain == 0 else aftersales_text(case))
        distinct = list(dict.fromkeys(policy_part for policy_part, _ in parts))
        policies = dict(zip(distinct, self.encode(distinct), strict=True))
        customers = self.encode([customer for _, customer in parts])
        head, middle = self._id[tokenizer.POLICY], self._id[tokenizer.PROFILE]
        return [(head, *policies[text], middle, *ids) for (text, _), ids in zip(parts, customers, strict=True)]

    def asked(self, ids: Ids) -> Ids:
        """What a user said, as it stands in prompts."""
        return (self._id[tokenizer.USER], *ids)

    def answered(self, ids: Ids) -> Ids:
        """An earlier reply as it stands in prompts; with or without its `<eos>`."""
        end = self._id[tokenizer.EOS]
        return (self._id[tokenizer.RESPONSE], *self.reply_ids(ids[:-1] if ids[-1:] == (end,) else ids))

    def prompt(self, facts: Ids, utterances: Sequence[Ids]) -> Ids:
        """A prompt without reasoning, ending with `<response>`.

        Args:
            facts: policy and customer, markers included.
            utterances: with their markers, oldest first, the user's current one last.

        Raises:
            PromptTooLong: the facts and the current utterance do not fit into `max_context`.
        """
        room = self.config.max_context - len(facts) - 1
        kept: Ids = ()
        for position, ids in enumerate(reversed(utterances[-self.config.history :])):
            if len(kept) + len(ids) > room:
                if position == 0:
                    raise PromptTooLong(
                        f"policy and customer take {len(facts)} tokens and the user {len(ids)}, expected at most "
                        f"--context.max-context {self.config.max_context}"
                    )
                break
            kept = ids + kept
        return (*facts, *kept, self._id[tokenizer.RESPONSE])

    def reasoned(self, direct: Ids, trace: Ids) -> Ids:
        """The scaffold's prompt: the same with the reasoning before `<response>`."""
        return (*direct[:-1], self._id[tokenizer.REASONING], *trace[: self.config.max_reasoning], direct[-1])

    def reply_ids(self, ids: Ids) -> Ids:
        """A reply with `<eos>`, cut to `max_reply`."""
        return (*ids, self._id[tokenizer.EOS])[: self.config.max_reply]

    def examples(self, split: ShopSplit, *, reasoned: bool = False) -> list[Example]:
        """What to learn from: every agent turn once.

        Args:
            split: dialogues.
            reasoned: one sequence per turn, with the gold reasoning, which the model then learns to write as well.
                Otherwise one per dialogue, or more where its facts change or its length asks for it.
        """
        if reasoned:
            return [self._reasoned_example(turn) for turns in self.prompts(split) for turn in turns]
        dialogues = zip(split.dialogues, self._encoded(split, split.dialogues), strict=True)
        return [example for dialogue, turns in dialogues for example in self._whole(dialogue.id, turns)]

    def _reasoned_example(self, turn: TurnPrompts) -> Example:
        # Both prompts are alike up to `<response>` or `<reasoning>`, behind which the model's part begins.
        sequence, given = turn.reasoned + turn.reference, len(turn.direct)
        mask = (False,) * given + (True,) * (len(sequence) - given)
        return Example(turn.dialogue.id, turn.turn, sequence, mask)

    def _whole(self, dialogue_id: str, turns: Sequence[_Turn]) -> list[Example]:
        """A dialogue as few sequences: one is carried on while the facts stay and there is room."""
        room = self.config.max_context + self.config.max_reply
        made: list[Example] = []
        for index, turn in enumerate(turns):
            reply = self.reply_ids(turn.reply)
            more = (*self.asked(turn.user), self._id[tokenizer.RESPONSE])
            last = made[-1] if made and turns[index - 1].facts == turn.facts else None
            if last is not None and len(last.sequence) + len(more) + len(reply) <= room:
                first, before, mask = last.turn, last.sequence + more, last.target_mask + (False,) * len(more)
                made.pop()
            else:
                first, before = index, self._prompt_of(turns, index)
                mask = (False,) * len(before)
            made.append(Example(dialogue_id, first, before + reply, mask + (True,) * len(reply)))
        return made

    def split_reasoned(self, ids: Ids) -> tuple[Ids, Ids]:
        """Cut what the scaffold wrote at `<response>`: reasoning and reply."""
        response = self._id[tokenizer.RESPONSE]
        cut = ids.index(response) if response in ids else len(ids)
        return ids[:cut], ids[cut + 1 :] or (self._id[tokenizer.EOS],)


def _plain(text: str) -> str:
    """Text in which nothing reads as a control token."""
    for token in tokenizer.CONTROL:
        if token in text:
            text = text.replace(token, token.strip("<>"))
    return text
