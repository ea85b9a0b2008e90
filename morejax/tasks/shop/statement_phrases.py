"""What counts as saying something: values in words, decisions, reasons, disclosures, forbidden statements.

Phrases are in the checker's normal form, see `cue_phrases`; of all that end at the same word the longest is read.
"""

from __future__ import annotations

from morejax.tasks.shop.cue_phrases import Phrases
from morejax.tasks.shop.ontology import KYC, PAYMENTS, STATUSES

DIRECT: dict[tuple[str, int], Phrases] = {
    ("kyc", KYC.index("missing")): (
        "identity has not been checked", "not started the identity check", "need your identity documents",
        "not sent your documents", "not sent us your documents", "identity check is missing",
        "identity check has not started", "identity check is not started", "not checked your identity",
        "do not have your documents", "documents are missing", "not yet checked your identity",
        "identity check has not been done",
    ),
    ("kyc", KYC.index("pending")): (
        "identity check is pending", "check is pending", "verification is pending", "documents are being checked",
        "verification is in progress", "check is in progress", "under review", "being reviewed", "being verified",
        "still checking your documents", "checking your identity", "check is under way", "verification is under way",
        "still checking your identity", "checking your documents", "pending",
    ),
    ("kyc", KYC.index("verified")): (
        "verified", "identity check is complete", "verification is complete", "verification is done", "check is done",
        "passed the identity check", "identity is confirmed", "confirmed your identity", "identity check is done",
    ),
    ("overdue_days", 0): (
        "nothing is overdue", "no overdue payments", "up to date", "nothing overdue", "not overdue", "not late",
        "no payment is overdue", "no late payments", "nothing is late", "no overdue payment", "not behind",
        "all payments are on time", "no missed payments", "not missed a payment", "not missed any payment",
    ),
    ("shipping_fee", 0): (
        "shipping is free", "delivery is free", "free shipping", "free delivery", "shipping costs nothing",
        "delivery costs nothing", "not pay for shipping", "not pay for delivery", "no shipping fee", "no delivery fee",
        "shipping is on us", "delivery is on us", "shipped for free", "pay nothing for shipping",
        "pay nothing for delivery",
    ),
    ("return_cost", 0): (
        "return shipping is free", "free return shipping", "return is free", "returning it is free",
    ),
    ("interest", 0): (
        "no interest", "interest free", "without interest", "zero interest", "not pay interest",
    ),
    ("restock_fee", 0): (
        "no restocking fee", "without a restocking fee",
    ),
    ("fee", 0): (
        "no fee", "no set - up fee", "without a fee",
    ),
    ("status", STATUSES.index("processing")): (
        "being prepared", "still processing", "preparing your order", "being processed", "is processing",
        "being packed", "in preparation", "preparing it", "packing your order", "not left yet", "in our warehouse",
        "not been sent yet", "not shipped yet",
    ),
    ("status", STATUSES.index("shipped")): (
        "shipped", "has shipped", "on its way", "on the way", "in transit", "has been sent", "was sent",
        "sent your parcel", "sent your order", "has left our warehouse", "with the carrier",
    ),
    ("status", STATUSES.index("delivered")): (
        "delivered", "arrived", "been delivered", "already delivered", "already been delivered", "has arrived",
        "was dropped off", "was handed over",
    ),
    ("status", STATUSES.index("cancelled")): (
        "was cancelled", "is cancelled", "been cancelled", "already cancelled", "was already cancelled",
        "is already cancelled", "cancelled before",
    ),
    ("refund_to", PAYMENTS.index("card")): (
        "your card", "the card", "bank card", "by card",
    ),
    ("refund_to", PAYMENTS.index("credit")): (
        "credit account", "your shop credit",
    ),
}  # fmt: skip
NOT_DIRECT: Phrases = (
    "be delivered", "be shipped", "be cancelled", "be verified", "get verified", "not be shipped",
    "has been verified by you", "is the order delivered", "once delivered", "until delivered",
)  # fmt: skip
"""Future or general: they hide the direct phrase inside them."""

_VERBS: Phrases = (
    "borrow", "borrow it", "lend", "lend you", "offer", "offer you", "give you", "grant", "have this loan",
    "get this loan", "have the loan", "get the loan", "take this loan", "take the loan", "return", "send it back",
    "send back", "give back", "give it back", "bring it back", "take it back", "take back", "cancel", "stop", "raise",
    "increase", "have a higher limit", "get a higher limit", "use the promotion", "get the promotion",
    "have the promotion", "send", "accept", "approve",
)  # fmt: skip
_PASSIVES: Phrases = (
    "returned", "cancelled", "raised", "increased", "sent back", "approved", "accepted", "given back", "stopped",
    "granted",
)  # fmt: skip
_ADVERBS: Phrases = (
    "", "still", "now", "also", "certainly", "gladly", "happily", "currently", "of course", "indeed",
)  # fmt: skip
APPROVE: Phrases = (
    "approved", "approve", "eligible", "qualify", "qualified", "accepted", "entitled", "allowed", "possible",
    "good to go", "promotion applies", "promotion is yours", "promotion is for you", "part of the promotion",
    "included in the promotion", "get the promotion", "offer applies", "accept the return", "accept this return",
    "loan is yours", "higher limit is yours", "able to offer you", "able to lend you", "able to raise your limit",
    "able to cancel", "able to return", "granted", "happy to lend you", "happy to raise your limit",
    "happy to take it back", "happy to cancel", "i have cancelled", "have cancelled it", "welcome to return",
    "free to return", "free to cancel", "welcome to borrow", "free to borrow", "promotion covers you",
    "not too late to cancel", "not too late to return",
    *(" ".join(f"can {adverb} {verb}".split()) for adverb in _ADVERBS for verb in _VERBS),
    *(" ".join(f"can {adverb} be {verb}".split()) for adverb in _ADVERBS for verb in _PASSIVES),
)  # fmt: skip
_NO = ("not", "no longer", "not currently", "not yet", "not now", "unfortunately not", "sadly not")
DENY: Phrases = (
    "declined", "decline", "rejected", "reject", "refused", "refuse", "denied", "deny", "ineligible", "turned down",
    "turn down", "impossible", "too late to cancel", "too late to return", "unable to", "promotion does not apply",
    "promotion does not cover you", "does not apply to you", "do not get the promotion", "excluded from the promotion",
    "not get the promotion", "not able to", "not included in the promotion", "not part of the promotion",
    "not accept the return",
    *(f"can {no} {verb}" for no in _NO for verb in _VERBS),
    *(f"can {no} be {verb}" for no in _NO for verb in _PASSIVES),
)  # fmt: skip
NOT_DECISIONS: Phrases = (
    "as soon as possible", "if possible", "where possible", "refund was already granted", "already granted",
    "was granted", "soon as possible", "when possible", "refund was granted", "been granted", "refund is granted",
    "clearance items are excluded", "can send you", "can offer you help", "best possible", "are not excluded",
    "already accepted", "be sent", "can send the link", "can now send you", "can also send you",
    "can also offer you help",
)  # fmt: skip
"""They hide the decision inside them."""

REASONS: dict[str, Phrases] = {
    "age": (
        "minimum age", "too young", "age is below our minimum", "not old enough", "your age", "age limit",
    ),
    "region": (
        "your region", "in this region", "where you live", "the region you live in",
    ),
    "kyc": (
        "identity is not verified", "identity check is not complete", "not verified your identity",
        "verify your identity", "identity has not been verified", "identity is unverified",
        "identity check is not finished", "identity is not yet verified", "not been verified",
        "identity is not confirmed", "identity check is still open", "identity check is missing",
        "identity still has to be verified", "not yet verified your identity", "need to verify your identity",
        "identity check is incomplete", "you are not verified", "you are not yet verified",
        "without a verified identity",
    ),
    "overdue": (
        "overdue balance", "overdue payment", "payment is overdue", "overdue bill", "overdue payments",
        "payments are overdue", "overdue amount", "account is overdue", "money is overdue", "you are overdue",
        "open overdue", "payment is late",
    ),
    "score": (
        "credit score", "score is too low", "your score is below", "score is not high enough",
    ),
    "loans": (
        "open loans", "most loans", "too many loans", "number of loans", "loans already", "more loans",
    ),
    "limit": (
        "over your remaining limit", "more than your available limit", "exceeds your remaining limit",
        "exceeds your limit", "over your limit", "over your available limit", "more than your remaining limit",
        "above your remaining limit", "above your available limit", "exceeds your available limit", "above your limit",
        "more than your limit", "limit is not enough", "limit is too small", "limit does not cover", "not enough limit",
        "more than you have left", "limit does not cover it", "limit is too low", "beyond your limit",
        "beyond your remaining limit",
    ),
    "draw": (
        "range of this product", "not cover that amount", "not fit this product", "below the minimum amount",
        "above the maximum amount", "outside the range", "not cover this amount", "amount is too small",
        "too small for this product", "too large for this product", "amount is not within the range",
        "amounts this product covers",
    ),
    "promo_over": (
        "promotion is over", "promotion has ended", "no longer running", "promotion has expired",
        "promotion is finished", "promotion ended", "promotion is not running any more", "promotion expired",
        "promotion is closed",
    ),
    "tier": (
        "membership tier", "higher tier", "membership tiers", "your tier", "higher tiers",
    ),
    "tenor": (
        "number of months", "only for other terms", "other months", "months is not included", "different term",
        "another term", "term you chose", "chosen term",
    ),
    "refunded": (
        "already refunded", "already been refunded", "already granted", "refund was granted", "already has a refund",
        "refund has been granted", "already got a refund", "refunded before", "already paid back",
        "refund was already made",
    ),
    "not_delivered": (
        "not arrived", "not been delivered", "not delivered", "not yet arrived", "not here yet",
        "not yet been delivered", "not with you yet", "not reached you", "not yet delivered", "still has to arrive",
        "not yet reached you", "has yet to arrive",
    ),
    "clearance": (
        "clearance item", "clearance items", "final sale", "clearance", "on clearance",
    ),
    "opened": (
        "been opened", "opened electronics", "was opened", "is opened", "box is open", "already opened",
        "opened the box", "opened it", "is already open", "seal is broken",
    ),
    "window": (
        "return window has closed", "return window is closed", "return period is over", "time for returns has passed",
        "outside the return window", "return window has passed", "return window is over", "deadline has passed",
        "window has closed", "return window closed", "too late for a return", "return period has ended",
        "window is over", "return deadline has passed", "return window has ended", "past the return window",
        "after the return window", "return deadline was missed", "window has passed",
    ),
    "shipped": (
        "already left", "out of our warehouse", "already shipped", "left our warehouse", "already on its way",
        "already been shipped", "already sent", "already been sent", "has shipped", "already on the way", "has left",
        "already with the carrier", "already delivered", "already been delivered",
    ),
    "already_cancelled": (
        "cancelled before", "already cancelled", "already been cancelled", "was cancelled earlier", "cancelled earlier",
    ),
}  # fmt: skip
DISCLOSURES: dict[str, Phrases] = {
    "withdraw": (
        "withdraw within 14 days", "14 days to withdraw", "mind within 14 days", "withdraw for 14 days",
        "withdrawal within 14 days", "withdrawal period of 14 days", "withdraw from it within 14 days",
        "14 days to change your mind", "withdraw from the loan within 14 days", "14 day withdrawal period",
        "14 days in which you can withdraw", "undo it within 14 days", "withdraw during the first 14 days",
    ),
    "example": (
        "not an offer", "subject to approval", "only an example", "just an example", "is an example",
        "subject to final approval", "not binding", "not a binding offer", "an example only", "not yet an offer",
        "subject to our approval",
    ),
    "late_fees": (
        "fees grow every day", "fee grows every day", "fees are added daily", "fee is added daily",
        "fee is added every day", "fee grows daily", "fees grow daily", "fee keeps growing", "fees keep growing",
        "fees are added every day", "fee goes up every day", "fee increases every day", "fee rises every day",
        "fees continue every day", "fee rises daily", "fees go up every day", "fee goes up daily",
        "every day adds to the late fee",
    ),
    "soft_check": (
        "not affect your credit rating", "not affect your rating", "rating is not affected",
        "no effect on your credit rating", "not change your credit rating", "without affecting your credit rating",
        "not hurt your credit rating", "no effect on your rating", "credit rating stays the same",
        "credit rating stays as it is", "not lower your credit rating", "rating will not be affected",
        "not touch your credit rating", "not harm your credit rating",
    ),
    "return_cost": (
        "return shipping", "return postage", "to ship it back", "for sending it back", "to send it back",
        "shipping it back", "sending it back costs", "cost of returning it", "return is free", "returning it is free",
    ),
    "restock": (
        "restocking fee", "restocking charge", "restock fee", "for restocking",
    ),
    "final_cancel": (
        "not be undone", "cancellation is final", "not be reversed", "is irreversible", "is permanent", "no way back",
        "this is final", "not undo it", "not undo this", "not undo a cancellation", "not reverse it",
        "not be taken back",
    ),
    "no_duty": (
        "no obligation", "not have to decide", "not obliged", "without obligation", "no need to decide",
        "free to say no", "not need to decide", "not have to buy", "without any obligation", "not have to take it",
        "decide any time",
    ),
}  # fmt: skip
_JOINTS = ("", " is", " of", " is only", " is at", " :", " is just")
FORBIDDEN: dict[str, Phrases] = {
    "guarantee": (
        "guaranteed", "guarantee", "guarantees", "risk free", "risk - free", "no risk", "without risk",
        "without any risk", "certain to be approved", "zero risk", "can not go wrong",
    ),
    "pressure": (
        "hurry", "last chance", "act now", "before it is too late", "only today", "now or never", "do not wait",
        "limited time", "before someone else", "decide now or", "while it lasts", "act fast", "decide right now",
        "sign now", "must decide today",
    ),
    "threat": (
        "legal action", "debt collector", "debt collectors", "court", "sue you", "police", "lawyer", "lawyers",
        "bailiff",
    ),
    "no_interest": (
        "free loan", "no interest", "interest free", "interest - free", "without interest", "zero interest",
        "costs you nothing", "loan is free", "without any interest", "not pay interest", "not pay any interest",
    ),
    "instant_refund": (
        "instant refund", "back today", "money today", "refund today", "refunded immediately", "refund is instant",
        "refunded today", "refund right now", "instantly refunded", "immediate refund", "refunded instantly",
        "money right now",
    ),
    "score": tuple(f"score{joint} {digit}" for joint in _JOINTS for digit in "0123456789"),
}  # fmt: skip

NEGATIONS: Phrases = (
    "not", "never", "no", "neither", "nor", "without", "nothing", "unable", "hardly", "none", "nobody",
)  # fmt: skip
NEGATION_STOPS: Phrases = (
    ",", "and", "but", "because", "as", "since", "so", ":", "(", ")", "-", "though", "while", "only", "however",
)  # fmt: skip
"""Words across which a negation does not reach."""
CAUSES: Phrases = (
    "because", "due", "about",
)  # fmt: skip
"""\"Not because of\" a reason does not give that reason; another negation does not touch reasons."""
HEDGES: Phrases = (
    "may", "might", "maybe", "perhaps", "possibly", "probably", "likely", "whether", "think", "guess", "presumably",
    "hopefully", "unclear", "unsure", "seem", "seems", "believe", "expect", "assume", "almost", "nearly",
)  # fmt: skip
FRAMES: Phrases = (
    "you", "we", "i", "it", "this", "that", "is", "are", "am", "be", "been", "was", "were", "have", "has", "do", "does",
    "not", "can", "will", "to", "no",
)  # fmt: skip
"""A single word decides only behind one of these: "you are approved", not "approved" among other words."""
SOFT_HEDGES: Phrases = (
    "could", "would", "should",
)  # fmt: skip
"""Hedges, but for their negation: "could not be approved" is a no."""
CONDITIONS: Phrases = (
    "if", "once", "unless", "whenever", "when", "provided", "suppose", "assuming",
)  # fmt: skip
LIMITS: Phrases = (
    "up", "only",
)  # fmt: skip
"""Like conditions, but only right behind a decision: "you can borrow up to $500"."""
APPROXIMATIONS: Phrases = (
    "about", "around", "approximately", "roughly", "nearly", "almost", "than", "circa", "maybe", "perhaps", "probably",
    "or", "like", "say", "over", "under", "approx", "between", "least", "most",
)  # fmt: skip
