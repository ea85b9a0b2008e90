"""A word-level tokenizer with a fall-back to letters, made from the world's own words; nothing is learnt.

A word of the vocabulary is one token, a digit is one token, the decimal point is a token of its own (`·`, so that it is
never taken for a full stop), and any other word is spelled by the longest known beginning and single letters
(`##x`): typing errors of users lose nothing. The agent's own language is closed: its templates, the checker's phrases
and the context never need the letters, and a reply that uses them is not well formed.

Before that, text is brought to the checker's normal form: lower case, contractions written out, ordinals and
thousands separators taken off. Saved in the Hugging Face form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

# transformers serves for tokenizers only; its advice to install PyTorch is of no use in a JAX project.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from morejax.tasks.shop import agent_wording, cue_phrases, ontology, statement_phrases, user_wording, world
from morejax.tasks.shop.everyday_words import EVERYDAY_WORDS

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
POLICY, PROFILE, USER, REASONING, RESPONSE = (
    "<policy>",
    "<profile>",
    "<user>",
    "<reasoning>",
    "<response>",
)
CONTROL = (PAD, EOS, UNKNOWN, POLICY, PROFILE, USER, REASONING, RESPONSE)
ACTION_TOKENS = tuple(ontology.action_token(name) for name in ontology.ACTIONS)
POINT = "·"
BLOCK = 64
"""The vocabulary is filled up to a multiple of it, which the sampler's two-level draw needs."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
MARKS = "$%.,;:!?'\"()-+*/=&#<>" + POINT
CONTEXT_WORDS = """
account act after age amount and arrives back basic below bill borrow by cancel cancelled card check clearance costs
credit dates day days delivered dollar dollars draw due duty each east electronics example extra fee fees final free
from gold grace held if interest is item kept last late left limit loans member membership missing month months no
none north not now opened order outside over overdue paid pending percent price processing product promo raise rate
refund refunded region restocking return rule say score shipped shipping silver soft south standard status tenor then
tier to today total undelivered under until used value verified wants west window withdraw yes
"""
# Applied in order, before splitting; (pattern, replacement).
NORMAL_FORM: tuple[tuple[str, str], ...] = (
    ("[’`]", "'"),
    (r"\bcan't\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"'re\b", " are"),
    (r"'ve\b", " have"),
    (r"'ll\b", " will"),
    (r"(?<=\bi)'m\b", " am"),
    (r"(?<=\bi)'d\b|(?<=you)'d\b", " would"),
    (r"(?<=it)'s\b|(?<=that)'s\b|(?<=here)'s\b|(?<=what)'s\b", " is"),
    (r"'s\b", ""),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?<=\d)(?:st|nd|rd|th)\b", ""),
    (rf"(?<=\d) of (?={'|'.join(ontology.MONTHS)})", " "),
    (rf"(?:{'|'.join(f'(?<={month})' for month in ontology.MONTHS)}) the (?=\d)", " "),
    (r"\bthree(?= (?:month|day|instalment))", "3"),
    (r"\bsix(?= (?:month|day|instalment))", "6"),
    (r"\btwelve(?= (?:month|day|instalment))", "12"),
    (r"\bfourteen(?= (?:month|day|instalment))", "14"),
    (r"\bthirty(?= (?:month|day|instalment))", "30"),
    (r"(?<=\d) dollars?\b", " dollars"),
    (r"(?<=\d)\.(?=\d)", POINT),
)
_PIECES = r"<[a-z:]+>|[a-z]+|\d|[^\sa-z\d]"


def normalise(text: str) -> str:
    """The checker's normal form of a text, as the tokenizer sees it."""
    text = text.lower()
    for pattern, replacement in NORMAL_FORM:
        text = re.sub(pattern, replacement, text)
    return text


def words_of(text: str) -> list[str]:
    """Words, digits and marks of a text, in its normal form."""
    return re.findall(_PIECES, normalise(text))


def _strings(values: object) -> Iterator[str]:
    """All strings in nested templates."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _strings(value)
    elif isinstance(values, Iterable):
        for value in values:
            yield from _strings(value)


def agent_words() -> tuple[str, ...]:
    """The agent's closed language, sorted: its templates, the phrases of the checker, the context and names."""
    modules = (agent_wording, cue_phrases, statement_phrases)
    texts = [
        text for module in modules for name, value in vars(module).items() if name.isupper() for text in _strings(value)
    ]
    codes = [
        *ontology.SLOTS,
        *ontology.REASONS,
        *ontology.DISCLOSURES,
        *ontology.ACTIONS,
        *ontology.KYC,
        *ontology.STATUSES,
    ]
    names = [*world.PRODUCT_NAMES, *world.ITEM_NAMES, *ontology.MONTHS, CONTEXT_WORDS]
    names += [code.replace("_", " ") for code in codes]
    return _sorted_words([*texts, *names, EVERYDAY_WORDS])


def user_words() -> tuple[str, ...]:
    """Words of the users' templates."""
    return _sorted_words(
        text for name, value in vars(user_wording).items() if name.isupper() for text in _strings(value)
    )


def _sorted_words(texts: Iterable[str]) -> tuple[str, ...]:
    found: set[str] = set()
    for text in texts:
        plain = re.sub(r"\{\w+\}", " ", text).replace("[", " ").replace("]", " ").replace("|", " ")
        found.update(word for word in words_of(plain) if word.isalpha())
    return tuple(sorted(found))


@cache
def vocabulary() -> dict[str, int]:
    """Token -> id: control, actions, digits, marks, letters, continued letters, words, and fillers to a whole block."""
    words = sorted({*agent_words(), *user_words()} - set(LETTERS))
    tokens = [*CONTROL, *ACTION_TOKENS, *DIGITS, *MARKS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    tokens += [f"<extra_{i}>" for i in range(-len(tokens) % BLOCK)]
    return {token: position for position, token in enumerate(tokens)}


@cache
def build_tokenizer() -> PreTrainedTokenizerFast:
    """The shop's tokenizer; always the same one."""
    ids = vocabulary()
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *(normalizers.Replace(Regex(pattern), new) for pattern, new in NORMAL_FORM)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[a-z]+|\d|[^\sa-z\d]"), "isolated")]
    )
    tokenizer.decoder = _decoder()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ACTION_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _decoder() -> decoders.Decoder:
    """Words with spaces, numbers and marks put together again."""
    joined = (
        (r"(?<=\d) (?=[\d·%])|(?<=·) (?=\d)|(?<=\$) (?=\d)", ""),
        (r" (?=[.,;:!?])", ""),
        ("·", "."),
        (r"\bcan not\b", "cannot"),
    )
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            *(decoders.Replace(Regex(pattern), new) for pattern, new in joined),
        ]
    )


def encode_batch(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of many texts, without `<eos>`; in parallel threads of the Rust tokenizer."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [tuple(encoding.ids) for encoding in encodings]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of a reply: everything before the first `<eos>`, control tokens dropped, actions kept."""
    ids = [int(i) for i in ids]
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return tokenizer.backend_tokenizer.decode(ids[:end], skip_special_tokens=True)
