"""How the agent says things: templates by statement; `[one|other|]` are alternatives, `{slot}` is a value.

The words here, those of the checker's phrases and those of the context are the agent's closed language.
"""

from __future__ import annotations

Templates = tuple[str, ...]

BECAUSE: dict[str, Templates] = {
    "age": ("you are below our minimum age", "your age is below our minimum", "you do not meet the minimum age"),
    "region": (
        "we do not lend in your region [yet|]",
        "your region is not served [yet|]",
        "this loan is not offered in your region",
    ),
    "kyc": (
        "your identity is not verified [yet|]",
        "your identity check is not complete",
        "we have not verified your identity [yet|]",
    ),
    "overdue": (
        "you have an overdue balance",
        "your account has an overdue payment",
        "there is an overdue payment on your account",
    ),
    "score": (
        "your credit score is below our minimum",
        "your credit score is too low [for this|]",
        "the credit score we hold is not high enough",
    ),
    "loans": (
        "you have too many open loans",
        "you already have the most loans we allow",
        "of the number of open loans",
    ),
    "limit": (
        "the amount is over your remaining limit",
        "the amount is more than your available limit",
        "the amount exceeds your remaining limit",
    ),
    "draw": (
        "the amount is outside the range of this product",
        "this product does not cover that amount",
        "that amount does not fit this product",
    ),
    "promo_over": (
        "the promotion is over",
        "the promotion has ended",
        "the promotion is no longer running",
    ),
    "tier": (
        "your membership tier is too low",
        "your membership tier is not included",
        "it is for higher membership tiers",
    ),
    "tenor": (
        "it is only for another number of months",
        "your number of months is not included",
        "it does not cover that number of months",
    ),
    "refunded": (
        "the order is already refunded",
        "a refund was already granted",
        "the order has already been refunded",
    ),
    "not_delivered": (
        "the order has not arrived yet",
        "the order has not been delivered [yet|]",
        "it is not delivered yet",
    ),
    "clearance": ("it is a clearance item", "it was a final sale", "clearance items are excluded"),
    "opened": (
        "the box has been opened",
        "opened electronics are excluded",
        "the item has been opened",
    ),
    "window": (
        "the return window has closed",
        "the return period is over",
        "the time for returns has passed",
    ),
    "shipped": (
        "the parcel has already left",
        "the order has already left our warehouse",
        "it is already out of our warehouse",
    ),
    "already_cancelled": (
        "the order was cancelled before",
        "it was already cancelled",
        "the order is already cancelled",
    ),
}
"""Reason clauses that fit behind "because"."""

APPROVE: dict[str, Templates] = {
    "borrow": (
        "[good news , |]you are approved for {amount}",
        "yes , you can borrow {amount} [over {tenor} months|]",
        "you are eligible [for this loan|to borrow {amount}]",
        "you qualify for {amount} [over {tenor} months|]",
        "we can offer you {amount} [for {tenor} months|]",
    ),
    "raise_limit": (
        "yes , we can raise your limit",
        "you qualify for a higher limit",
        "[good news , |]your limit can be raised",
        "you are eligible for a higher limit",
        "a higher limit is possible for you",
    ),
    "promo": (
        "yes , you get the promotion",
        "you qualify for the promotion",
        "the promotion applies to you",
        "you are eligible for the promotion",
        "[good news , |]you can use the promotion",
    ),
    "return": (
        "yes , you can return the {item}",
        "you can [still |]send the {item} back",
        "your order can be returned",
        "a return is possible",
        "we accept the return of your {item}",
    ),
    "cancel": (
        "yes , order {order_number} can be cancelled",
        "you can [still |]cancel this order",
        "we can cancel order {order_number} for you",
        "it is possible to cancel the order",
        "your order can [still |]be cancelled",
    ),
}
DENY: dict[str, Templates] = {
    "borrow": (
        "you can not borrow {amount} [at the moment|right now|] because {because}",
        "I can not approve this loan because {because}",
        "you are not eligible [right now|] as {because}",
        "the loan is declined because {because}",
        "we are unable to offer you this loan since {because}",
    ),
    "raise_limit": (
        "we can not raise your limit [right now|] because {because}",
        "you do not qualify for a higher limit as {because}",
        "your limit can not be raised since {because}",
        "a higher limit is not possible because {because}",
    ),
    "promo": (
        "the promotion does not apply because {because}",
        "you do not qualify for the promotion as {because}",
        "you can not use the promotion because {because}",
        "you are not eligible for the promotion since {because}",
    ),
    "return": (
        "you can not return the {item} because {because}",
        "a return is not possible as {because}",
        "we can not accept the return since {because}",
        "this order can not be returned because {because}",
    ),
    "cancel": (
        "we can not cancel order {order_number} because {because}",
        "it is not possible to cancel since {because}",
        "your order can no longer be cancelled as {because}",
        "you can not cancel this order because {because}",
    ),
}

SAY: dict[str, Templates] = {
    "limit_left": (
        "your remaining limit is {limit_left}",
        "you have {limit_left} left [to spend|of your limit|]",
        "you can still use {limit_left}",
        "your available limit is {limit_left} [today|right now|]",
        "there is {limit_left} left on your account",
    ),
    "instalment": (
        "each instalment [would be|is] {instalment} [for {tenor} months|]",
        "the monthly payment is {instalment} [over {tenor} months|]",
        "{amount} over {tenor} months is {instalment} a month",
        "you pay {instalment} a month [for {tenor} months|]",
        "that makes {tenor} instalments of {instalment}",
    ),
    "interest": (
        "the interest is {interest} [in total|] and you repay {total_repay}",
        "you pay {interest} in interest , {total_repay} [in total|all together]",
        "total interest comes to {interest} , so you repay {total_repay}",
        "you repay {total_repay} in total , of which {interest} is interest",
        "over {tenor} months the interest is {interest} and the total is {total_repay}",
    ),
    "fee": (
        "the [set-up |]fee is {fee}",
        "we charge a fee of {fee}",
        "there is a one-time fee of {fee}",
        "for {amount} the fee is {fee}",
        "the fee for this loan comes to {fee}",
    ),
    "rate": (
        "the monthly rate is {rate}",
        "your rate is {rate} a month",
        "interest is {rate} a month",
        "the rate for you is {rate} [a month|per month]",
    ),
    "due": (
        "your next payment of {due_amount} is due on {due_date}",
        "{due_amount} is due on {due_date}",
        "please pay {due_amount} by {due_date}",
        "the due date is {due_date} and the bill is {due_amount}",
        "you owe {due_amount} , due on {due_date}",
    ),
    "overdue": (
        "you are {overdue_days} days overdue and the late fee is {late_fee}",
        "your payment is {overdue_days} days late , the late fee so far is {late_fee}",
        "the late fee is {late_fee} as you are {overdue_days} days late",
        "you are {overdue_days} days late with {overdue_amount} and owe a late fee of {late_fee}",
    ),
    "not_overdue": (
        "nothing is overdue",
        "you have no overdue payments",
        "your account is up to date",
        "there is nothing overdue on your account",
    ),
    "kyc_missing": (
        "your identity has not been checked yet",
        "you have not started the identity check",
        "we still need your identity documents",
    ),
    "kyc_pending": (
        "your identity check is pending",
        "your documents are being checked",
        "your verification is in progress",
    ),
    "kyc_verified": (
        "your identity is verified",
        "your identity check is complete",
        "you are fully verified",
    ),
    "promo_end": (
        "the promotion runs until {promo_end}",
        "the promotion ends on {promo_end}",
        "it is valid until {promo_end}",
    ),
    "status_processing": (
        "order {order_number} is being prepared and should arrive by {eta}",
        "your order is still processing , it should arrive on {eta}",
        "we are preparing your order , expected on {eta}",
    ),
    "status_shipped": (
        "order {order_number} has shipped and should arrive by {eta}",
        "your parcel is on its way and should arrive on {eta}",
        "your order was shipped , expected on {eta}",
    ),
    "status_delivered": (
        "order {order_number} was delivered on {delivered_on}",
        "your parcel was delivered on {delivered_on}",
        "your order arrived on {delivered_on}",
    ),
    "status_cancelled": (
        "order {order_number} was cancelled",
        "your order is cancelled",
        "this order has been cancelled",
    ),
    "refund": (
        "your refund is {refund}",
        "you get {refund} back",
        "we refund {refund} [of {price}|]",
        "the refund for your {item} is {refund}",
    ),
    "restock_fee": (
        "the restocking fee is {restock_fee}",
        "a restocking fee of {restock_fee} is kept",
        "that is after a restocking fee of {restock_fee}",
    ),
    "refund_when": (
        "the refund arrives by {refund_date} on your {refund_to}",
        "your {refund_to} is refunded by {refund_date}",
        "expect your money by {refund_date} , we send it to your {refund_to}",
    ),
    "deadline": (
        "you have {return_days} days , so return it by {return_deadline}",
        "the return window is {return_days} days and closes on {return_deadline}",
        "the last day to return it is {return_deadline} , {return_days} days after delivery",
    ),
    "shipping_fee": (
        "shipping costs {shipping_fee} [for this order|]",
        "the shipping fee is {shipping_fee}",
        "delivery costs {shipping_fee}",
    ),
    "free_shipping": (
        "shipping is free [for this order|]",
        "delivery is free [for this order|]",
        "the shipping fee is {shipping_fee}",
    ),
    "member_refund": (
        "the membership refund is {member_refund}",
        "if you leave today you get {member_refund} of your membership fee",
        "{member_refund} of your membership fee comes back to you",
    ),
}
"""Statements of facts; keys are slots or what `oracle.statements` names."""

DISCLOSE: dict[str, Templates] = {
    "withdraw": (
        "you can withdraw within 14 days",
        "you have 14 days to withdraw",
        "you may change your mind within 14 days",
    ),
    "example": (
        "this is an example and not an offer",
        "this figure is subject to approval",
        "please note that this is subject to approval",
    ),
    "late_fees": (
        "late fees grow every day",
        "the late fee grows every day [until you pay|]",
        "late fees are added daily",
    ),
    "soft_check": (
        "this check does not affect your credit rating",
        "asking does not affect your credit rating",
        "your credit rating is not affected",
    ),
    "return_cost": (
        "return shipping costs {return_cost}",
        "you pay {return_cost} for return shipping",
        "the return shipping fee is {return_cost}",
    ),
    "restock": (
        "a restocking fee applies",
        "please note that a restocking fee applies",
        "a restocking fee is taken off",
    ),
    "final_cancel": (
        "this can not be undone",
        "a cancellation is final",
        "please note that a cancellation is final",
    ),
    "no_duty": (
        "there is no obligation [at all|]",
        "you are under no obligation",
        "you do not have to decide now",
    ),
}

OPEN: dict[str, Templates] = {
    "neutral": ("", "", "sure .", "of course .", "thanks for asking .", "let me see ."),
    "worried": (
        "I understand [your worry|] .",
        "I am sorry about this .",
        "I see why that is annoying .",
        "sorry for the trouble .",
    ),
    "happy": ("great question .", "happy to help .", "thank you for your patience ."),
}
"""First words, by mood: worried where the user complains or gets a no."""

CLOSE: Templates = (
    "",
    "",
    "",
    "is there anything else ?",
    "let me know if you have questions .",
    "can I help with anything else ?",
    "I am here if you need me .",
)
LONG_WINDED: Templates = (
    "I have looked at your account and at all of our current rules to find this out for you .",
    "as always we do our best to give you a full and clear answer to every question .",
    "please take all the time that you need to think about this and to compare .",
)
REPLY: dict[str, Templates] = {
    "human": (
        "I will connect you with a colleague [now|right away|] .",
        "a colleague will take over [from here|now|] .",
        "one moment , I am passing you to a colleague .",
    ),
    "objection": (
        "I understand that price matters [to you|] .",
        "that is a fair point .",
        "I hear you , take your time .",
    ),
    "smalltalk": (
        "you are welcome .",
        "happy to help .",
        "have a nice day .",
        "hello , how can I help you ?",
        "glad I could help .",
    ),
}
FORBIDDEN_SAYINGS: dict[str, Templates] = {
    "guarantee": ("approval is guaranteed .", "there is no risk ."),
    "pressure": ("you should hurry , this is your last chance .", "act now before it is too late ."),
    "threat": ("we will take legal action .", "a debt collector will visit you ."),
    "no_interest": ("it is a free loan .", "you pay no interest ."),
    "instant_refund": ("you get an instant refund .", "the money is back today ."),
    "score": ("your internal score is 512 .",),
}
"""What an imperfect human agent lets slip; never in an oracle's reply."""
