"""Cue phrases: which slot a number near them is about.

Phrases are in the checker's normal form: lower case, contractions written out, "cannot" as "can not". Of all phrases
that end at the same word the longest is read.
"""

from __future__ import annotations

Phrases = tuple[str, ...]

# A number takes the slot of the nearest cue of its kind: before it in the sentence (FORWARD), right before it
# (ADJACENT), or right behind it (BACKWARD). WEAK cues give way to others. IGNORED_BEFORE and IGNORED_BEHIND tell that a
# number is about nothing here.
FORWARD: dict[str, Phrases] = {
    "limit_left": (
        "remaining limit", "available limit", "limit left", "limit remaining", "limit available", "still use",
        "still spend", "still draw", "still borrow", "still available", "remaining credit", "available credit",
        "borrow up to", "use up to", "spend up to", "draw up to", "left to spend", "left to use",
        "left on your account", "remains", "remaining", "can spend", "can use", "available balance",
        "remaining balance",
    ),
    "limit_total": (
        "limit", "total limit", "credit limit", "full limit", "overall limit",
    ),
    "used": (
        "used", "have spent", "already spent", "in use",
    ),
    "held": (
        "held", "on hold", "reserved", "holds",
    ),
    "instalment": (
        "instalment", "instalments", "monthly payment", "monthly payments", "each month", "per month", "every month",
        "pay monthly", "monthly amount", "monthly instalment", "a month",
    ),
    "last_instalment": (
        "last instalment", "final instalment", "last one", "last payment", "final payment", "final one",
    ),
    "interest": (
        "interest", "total interest", "interest cost", "interest costs",
    ),
    "total_repay": (
        "repay", "total", "pay back", "total cost", "total amount", "repayment", "repay a total", "total repayment",
    ),
    "fee": (
        "fee", "fees", "charge", "set - up fee", "one - time fee", "charge a fee",
    ),
    "late_fee": (
        "late fee", "late fees", "late charge", "late payment fee", "fee for being late", "penalty",
    ),
    "due_amount": (
        "next payment", "payment of", "bill", "owe", "owe us", "please pay", "to pay", "must pay", "amount due",
        "balance due",
    ),
    "overdue_amount": (
        "overdue amount", "overdue balance", "overdue payment", "overdue payments", "late with", "behind with",
    ),
    "rate": (
        "rate", "monthly rate", "interest rate", "promotional rate", "special rate",
    ),
    "overdue_days": (
        "late by", "overdue by", "overdue for", "late for", "behind by",
    ),
    "due_date": (
        "due on", "is due on", "is due by", "is due", "due", "due date", "due by", "pay by", "payment date",
        "next payment", "bill", "owe", "please pay",
    ),
    "promo_end": (
        "promotion runs until", "promotion ends on", "promotion ends", "promotion", "valid until", "runs until",
        "ends on", "promotion lasts until", "until", "offer ends on",
    ),
    "price": (
        "price", "price of", "you paid", "item costs", "price is",
    ),
    "refund": (
        "refund", "refunded", "get back", "refund you", "we refund", "give you back", "send you back", "pay you back",
    ),
    "restock_fee": (
        "restocking fee", "restock fee", "restocking charge", "for restocking",
    ),
    "return_cost": (
        "return shipping", "return shipping costs", "return shipping fee", "return postage", "shipping it back",
        "shipping it back costs", "sending it back costs", "cost of returning it",
    ),
    "shipping_fee": (
        "shipping", "shipping costs", "shipping fee", "delivery costs", "delivery fee", "delivery", "shipping cost",
        "delivery charge", "postage", "to ship it costs", "shipping is",
    ),
    "member_refund": (
        "membership refund", "refund for your membership", "refund of your membership fee", "leave today you get",
        "refund for the membership", "refund of your membership", "membership gives you back", "from your membership",
        "for your membership you get", "for the membership you get", "membership you get", "membership you get back",
    ),
    "return_days": (
        "return window", "return period", "return it within", "return within", "back within", "return window of",
        "returns within", "returned within",
    ),
    "refund_days": (
        "refund takes", "refunds take", "refund within",
    ),
    "return_deadline": (
        "return it by", "send it back by", "closes on", "window closes", "last day to return", "last day to return it",
        "last day", "deadline", "return deadline", "return by", "return it until", "back by", "return it before",
        "window ends on", "returned by", "return it no later than", "back until", "returns until",
        "window is open until", "possible until", "can return it until", "send it back until", "return window",
        "final day", "last date",
    ),
    "refund_date": (
        "refund arrives", "refund arrives by", "refund arrives on", "refunded by", "refunded on", "money by",
        "refund by", "refund should arrive by", "refund should arrive on", "refund will arrive by",
        "refund will arrive on", "refund", "money arrives by", "money arrives on", "money back by",
        "money will arrive by", "money will arrive on", "refund on", "paid back by", "paid back on", "money back on",
        "refund is due on", "refund is expected on", "your money", "refund is expected by", "refund date",
    ),
    "eta": (
        "arrive by", "arrive on", "arrive", "arrives", "arrives by", "arrives on", "expected on", "expected",
        "expected by", "with you by", "with you on", "be delivered", "be delivered on", "be delivered by",
        "reach you by", "reach you on", "delivery date", "delivery is planned for", "delivery is expected on",
        "due to arrive on", "be there by", "be there on",
    ),
    "delivered_on": (
        "delivered on", "arrived on", "delivered", "arrived", "dropped off on", "handed over on", "received it on",
        "delivery was on",
    ),
    "order_number": (
        "order", "order number", "number",
    ),
}  # fmt: skip
ADJACENT: dict[str, Phrases] = {
    "amount": (
        "for", "borrow", "lend you", "offer you", "approved for", "qualify for", "loan of", "amount of", "take", "draw",
        "on", "borrowing", "request for",
    ),
}  # fmt: skip
BACKWARD: dict[str, Phrases] = {
    "limit_left": (
        "left", "left to spend", "left to use", "is left", "remaining", "still available", "is still available",
        "available", "is available", "is available to you", "remains", "still to spend", "of free limit",
        "is still free", "is your remaining limit", "is your available limit", "of your limit left",
    ),
    "limit_total": (
        "limit", "is your limit", "is your total limit", "in total limit",
    ),
    "used": (
        "used", "is used", "are used", "in use", "has been used", "already used", "already spent", "is in use",
    ),
    "held": (
        "held", "is held", "on hold", "is on hold", "reserved", "is reserved",
    ),
    "instalment": (
        "a month", "per month", "monthly", "each month", "every month", "each", "as your monthly payment",
        "is your monthly payment",
    ),
    "last_instalment": (
        "at the end", "in the last month", "as the last one",
    ),
    "interest": (
        "in interest", "interest", "is interest", "of it is interest", "of that is interest", "of this is interest",
        "of which is interest", "of interest", "in total interest", "is the interest",
    ),
    "total_repay": (
        "all together", "altogether", "overall", "in all", "to repay", "is what you repay", "is the total",
    ),
    "fee": (
        "fee", "in fees", "as a fee", "set - up fee", "is the fee",
    ),
    "late_fee": (
        "late fee", "in late fees", "as a late fee", "is the late fee", "of late fees",
    ),
    "due_amount": (
        "due", "is due", "due on", "is due on", "is due by", "is your next bill", "is your next payment",
    ),
    "overdue_amount": (
        "overdue", "is overdue", "in arrears", "is late",
    ),
    "rate": (
        "a month", "per month", "monthly", "interest", "interest a month", "is your rate", "is the rate", "each month",
    ),
    "overdue_days": (
        "late", "overdue", "behind", "past due", "too late", "in arrears",
    ),
    "due_date": (
        "is the due date", "is your due date", "is when your payment is due", "is when your next payment is due",
    ),
    "promo_end": (
        "is the last day of the promotion", "is the end of the promotion", "is when the promotion ends",
    ),
    "refund": (
        "back", "is refunded", "refunded", "will be refunded", "as a refund", "comes back", "goes back",
        "is your refund", "is the refund",
    ),
    "restock_fee": (
        "restocking fee", "for restocking", "as a restocking fee", "is the restocking fee",
    ),
    "return_cost": (
        "for return shipping", "return shipping", "for the return shipping", "to ship it back", "for sending it back",
        "to send it back",
    ),
    "shipping_fee": (
        "for shipping", "shipping", "for delivery", "for the delivery", "for the shipping", "in shipping costs",
        "is the shipping fee",
    ),
    "member_refund": (
        "of your membership fee", "of the membership fee", "from your membership", "for your membership",
        "of your membership", "from the membership", "for the membership",
    ),
    "return_days": (
        "to return", "to return it", "after delivery", "return window", "to send it back", "for returns",
        "to give it back", "for a return",
    ),
    "refund_days": (
        "for the refund", "until the refund",
    ),
    "return_deadline": (
        "is the last day", "is the deadline", "is the return deadline", "is the last day to return it",
        "is your last day", "is the last day for a return", "at the latest",
    ),
    "refund_date": (
        "is when the refund arrives", "is when your refund arrives", "is the refund date", "is when you get your money",
    ),
    "eta": (
        "is the delivery date", "is when it should arrive", "is when it arrives",
    ),
    "delivered_on": (
        "is when it was delivered", "is when it arrived", "is when we delivered it",
    ),
}  # fmt: skip
WEAK: dict[str, Phrases] = {
    "limit_left": (
        "you have", "you still have",
    ),
    "return_days": (
        "you have", "you still have",
    ),
    "total_repay": (
        "in total", "a total of",
    ),
    "refund": (
        "you get", "you receive", "you will get", "you will receive",
    ),
}  # fmt: skip
"""Before the number or right behind it."""
IGNORED_BEFORE: Phrases = (
    "of", "within", "withdraw within", "mind within", "withdraw for", "worth", "membership fee",
)  # fmt: skip
IGNORED_BEHIND: Phrases = (
    "to withdraw", "membership fee",
)  # fmt: skip
