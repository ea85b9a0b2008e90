"""From dialogues to token ids: policy and customer as text, recent utterances, the reasoning, the reply.

One sequence per agent turn::

    <policy> rules and terms in force  <profile> the customer  <user> u  <agent> r  <user> u_t
    [<reasoning> trace]  <response> reply <eos>

The reasoning is there for the scaffold only. Policy and customer are never cut; of the dialogue the oldest goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """One agent turn to learn from; `target_mask` marks what the model writes: the reply, with reasoning that too."""

    dialogue_id: str
    turn: int
    prompt: Ids
    reply: Ids
    sequence: Ids
    target_mask: tuple[bool, ...]


def credit_text(case: Case, request: Request) -> tuple[str, str]:
    """Policy and customer of a credit case, in words."""
    product, profile = case.product, case.profile
    terms = (
        f"product {PRODUCT_NAMES[product.name]} rate {percent_text(product.monthly_bp)} "
        f"fee {percent_text(product.fee_bp)} "
        f"late {percent_text(product.late_bp)} grace {product.grace_days} due {product.due_days} "
        f"draw {money_text(product.min_draw)} to {money_text(product.max_draw)} promo {percent_text(product.promo_bp)} "
        f"from {date_text(product.promo_start)} until {date_text(product.promo_end)}"
    )
    customer = (
        f"today {date_text(case.today)} wants {money_text(request.amount)} , {request.tenor} months "
        f"tier {ontology.TIERS[profile.tier]} age {profile.age} region {ontology.REGIONS[profile.region]} "
        f"{ontology.KYC[profile.kyc]} score {profile.score} loans {profile.open_loans} "
        f"limit {money_text(profile.limit)} used {money_text(profile.used)} held {money_text(profile.held)} "
        f"overdue {profile.overdue_days} {money_text(profile.overdue_cents)} "
        f"bill {money_text(profile.bill_cents)} , {date_text(profile.bill_day)}"
    )
    return f"{policy.policy_text(case.rules, ('borrow', 'raise_limit', 'promo'))} . {terms}", customer


def aftersales_text(case: Case) -> tuple[str, str]:
    """Policy and customer of an aftersales case, in words."""
    order, profile, figures = case.order, case.profile, policy.rule_figures(case.rules)
    terms = (
        "return {return_days} days electronics {electronics_days} gold {gold_extra_days} extra cost {return_cost} "
        "gold free . refund {refund_days} days . shipping {shipping_fee} free from {free_shipping_over} gold free . "
        "membership {member_fee} . restocking electronics "
    ).format(**figures) + percent_text(case.rules.restock_bp)
    status = ontology.STATUSES[order.status]
    days = {"delivered": order.delivered, "processing": order.eta, "shipped": order.eta}
    day = date_text(days[status]) if status in days else ""
    member = date_text(profile.member_until) if profile.member_until >= case.today else "no"
    customer = (
        f"today {date_text(case.today)} tier {ontology.TIERS[profile.tier]} order {order.number} "
        f"item {ITEM_NAMES[order.item]} {ontology.CATEGORIES[order.category]} price {money_text(order.price)} "
        f"paid {'card' if order.paid_by == 0 else 'credit account'} {status} {day} "
        f"{'opened' if order.opened else ''} refund {date_text(order.refund_day) if order.refund_state else 'no'} "
        f"member {member}"
    )
    if member != "no":
        customer += f" {profile.member_until - case.today} days"
    return f"{policy.policy_text(case.rules, ('return', 'cancel'))} . {terms}", customer


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
        turns = [(dialogue, turn) for dialogue in chosen for turn in dialogue.turns]
        rows = [turn.row for _, turn in turns]
        facts = self._facts(split, rows)
        users = self.encode([turn.user for _, turn in turns])
        replies = self.encode([turn.response for _, turn in turns])
        questions = split.questions()
        traces = self.encode([reasoning_trace(questions[row]) for row in rows])
        made: list[list[TurnPrompts]] = []
        for at, (dialogue, turn) in enumerate(turns):
            began = at - turn.index
            said = [ids for i in range(began, at) for ids in self._exchange(users[i], replies[i])]
            direct = self.prompt(facts[at], [*said, (self._id[tokenizer.USER], *users[at])])
            if turn.index == 0:
                made.append([])
            reply = self.reply_ids(replies[at])
            made[-1].append(
                TurnPrompts(dialogue, turn.index, turn.row, direct, self.reasoned(direct, traces[at]), reply)
            )
        return made

    def _facts(self, split: ShopSplit, rows: Sequence[int]) -> list[Ids]:
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

    def _exchange(self, user: Ids, reply: Ids) -> tuple[Ids, Ids]:
        return (self._id[tokenizer.USER], *user), (self._id[tokenizer.AGENT], *reply)

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
        """One example per agent turn.

        Args:
            split: dialogues.
            reasoned: with the gold reasoning, which the model then learns to write as well.
        """
        made = []
        for prompts in self.prompts(split):
            for turn in prompts:
                sequence = (turn.reasoned if reasoned else turn.direct) + turn.reference
                # Both prompts are alike up to here: where `<response>` or `<reasoning>` stands the model's part begins.
                given = len(turn.direct)
                mask = (False,) * given + (True,) * (len(sequence) - given)
                made.append(Example(turn.dialogue.id, turn.turn, turn.direct, turn.reference, sequence, mask))
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
