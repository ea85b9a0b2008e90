"""A byte-level BPE tokenizer for delexicalised dialogues.

Text is lower-cased, white space is collapsed, numbers are read digit by digit, and every marker (speakers,
domains, slots, acts, database counts, placeholders) is one token that is never split. A placeholder takes the
space to its left with it; the rare one that touches the word before it ("#[reference]") is written
`<join>[reference]`, so that decoding gives the spacing back. Saved in the Hugging Face form:
`AutoTokenizer.from_pretrained(run)` loads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# transformers serves for tokenizers only; its advice to install PyTorch is of no use in a JAX project.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from morejax.tasks.multiwoz.canonical import PLACEHOLDERS
from morejax.tasks.multiwoz.normalise import unify

PAD, EOS = "<pad>", "<eos>"
USER, SYSTEM, PREVIOUS, STATE, DATABASE, ACTS, RESPONSE = (
    "<user>",
    "<system>",
    "<prev>",
    "<state>",
    "<db>",
    "<acts>",
    "<response>",
)
JOIN = "<join>"
WEAK = "<weak>"
"""In the sequences of a dialogue whose annotation is not exact; only in vocabularies that were asked for it."""

DOMAINS = ("restaurant", "hotel", "attraction", "train", "taxi", "hospital", "police", "bus")
ACT_DOMAINS = ("general", "booking")
STATE_SLOTS = (
    "area", "arrive", "bookday", "bookpeople", "bookstay", "booktime", "day", "departure", "department",
    "destination", "food", "internet", "leave", "name", "parking", "pricerange", "stars", "type",
)  # fmt: skip
ACT_SLOTS = (
    "address", "choice", "duration", "entrancefee", "id", "none", "openhours", "people", "phone",
    "postcode", "price", "ref", "stay", "ticket", "time", "trainid",
)  # fmt: skip
ACT_INTENTS = (
    "book", "bye", "greet", "inform", "nobook", "nooffer", "offerbook", "offerbooked", "recommend",
    "reqmore", "request", "select", "thank", "welcome",
)  # fmt: skip
VALUES = ("yes", "no", "dontcare")
COUNT_MARKERS = ("<db:0>", "<db:1>", "<db:2>", "<db:3>", "<db:4-10>", "<db:11+>")

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
_PLACEHOLDER = "|".join(re.escape(p) for p in PLACEHOLDERS)


def marker(name: str) -> str:
    """The marker token of a domain, slot, intent or value: `marker("leave") == "<leave>"`."""
    return f"<{name}>"


def count_marker(count: int) -> str:
    """The bucket of a database count: 0, 1, 2, 3, 4 to 10, 11 and more."""
    if count < 0:
        raise ValueError(f"a database count cannot be negative, found {count}")
    return COUNT_MARKERS[count] if count < 4 else COUNT_MARKERS[4 if count <= 10 else 5]


def special_tokens() -> tuple[str, ...]:
    """All control tokens; `<pad>` is 0, `<eos>` is 1; `<join>` and the placeholders come after the words."""
    control = (PAD, EOS, USER, SYSTEM, PREVIOUS, STATE, DATABASE, ACTS, RESPONSE, JOIN)
    names = dict.fromkeys((*DOMAINS, *ACT_DOMAINS, *STATE_SLOTS, *ACT_SLOTS, *ACT_INTENTS, *VALUES))
    return (*control, *(marker(name) for name in names), *COUNT_MARKERS)


def _control_tokens(more: Sequence[str] = ()) -> list[AddedToken]:
    return [AddedToken(t, special=True, normalized=False) for t in (*special_tokens(), *more) if t != JOIN]


def _text_tokens() -> list[AddedToken]:
    # Part of the text: found after normalisation, and not "special", so that decoding keeps them.
    join = AddedToken(JOIN, special=False, normalized=True)
    return [join, *(AddedToken(p, special=False, normalized=True, lstrip=True) for p in PLACEHOLDERS)]


def _decoder() -> decoders.Decoder:
    spaced = [decoders.Replace(p, "Ġ" + p) for p in PLACEHOLDERS]
    return decoders.Sequence(
        [*spaced, decoders.ByteLevel(), decoders.Replace(JOIN + " ", ""), decoders.Strip(" ", 1, 0)]
    )


def _one_space() -> normalizers.Normalizer:
    return normalizers.Replace(Regex(r"\s+"), " ")


def _empty_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    joint = normalizers.Replace(Regex(rf"(?<=\S)(?={_PLACEHOLDER})"), JOIN)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), _one_space(), joint])
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = _decoder()
    return tokenizer


def _segments(texts: Iterable[str]) -> Iterator[str]:
    # The trainer does not know added tokens: without the cut it would spend merges on "[", "name", "]".
    for text in texts:
        for segment in re.split(rf"\s?(?:{_PLACEHOLDER})", " " + " ".join(text.lower().split())):
            if segment:
                yield segment


def train_tokenizer(texts: Iterable[str], vocab_size: int, more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Learns the byte-level BPE of a corpus (Sennrich et al. 2016, arXiv 1508.07909).

    Args:
        texts: utterances; replies delexicalised, with the placeholders of `canonical.PLACEHOLDERS`.
        vocab_size: number of token ids wanted; rounded up to a multiple of 64. Where a small corpus offers
            fewer merges, unused `<extra_i>` tokens fill it up, since the two-level sampler needs whole blocks
            of 64.
        more: further control tokens, e.g. `WEAK`.

    Returns:
        A fast tokenizer; every token of `special_tokens()` and of `canonical.PLACEHOLDERS` is one id.

    Raises:
        ValueError: `vocab_size` does not hold the byte alphabet and the special tokens.
    """
    control, text_tokens = _control_tokens(more), _text_tokens()
    size, least = -(-vocab_size // 64) * 64, 256 + len(control) + len(text_tokens)
    if size < least:
        raise ValueError(f"vocab_size is {vocab_size}, expected at least {least}: 256 bytes and the special tokens")
    tokenizer = _empty_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(text_tokens),
        min_frequency=2,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_segments(texts), trainer)
    tokenizer.add_tokens(text_tokens)
    _fill_up(tokenizer, size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def _fill_up(tokenizer: Tokenizer, size: int) -> None:
    extra = [AddedToken(f"<extra_{i}>", normalized=False) for i in range(size - tokenizer.get_vocab_size())]
    tokenizer.add_tokens(extra)


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, least: int = 0, more: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A pre-trained model's tokenizer with the task's tokens: ids that it has stay, new ones follow.

    Text is lower-cased and its white space collapsed; how words are cut, and put together again, stays the model's, so
    that other programs decode replies as it is done here. (The space before a placeholder is then a token of its own.)
    `<pad>` and `<eos>` take the places of the model's.

    Args:
        tokenizer: of the model; it must not be used afterwards.
        least: ids that the model has; unused `<extra_i>` tokens fill up to them, and to a multiple of 64.
        more: further control tokens, e.g. `WEAK`.

    Raises:
        ValueError: it is no byte-level BPE, which GPT-2, Llama 3, SmolLM2 and Qwen have.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.decoder, decoders.ByteLevel):
        kind = type(tokenizer if backend is None else backend.decoder).__name__
        raise ValueError(f"the model's tokenizer decodes by {kind}, expected a byte-level BPE (ByteLevel)")
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), _one_space(), *own])
    text_tokens = [AddedToken(name, special=False, normalized=True) for name in (JOIN, *PLACEHOLDERS)]
    backend.add_tokens([*_control_tokens(more), *text_tokens])
    size = max(least, backend.get_vocab_size())
    _fill_up(backend, -(-size // 64) * 64)
    # Not the family's own class: it would build another normalizer when it is loaded.
    extended = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    extended.chat_template = tokenizer.chat_template
    return extended


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """Writes `tokenizer.json` and its configuration in the Hugging Face form."""
    tokenizer.save_pretrained(str(directory))


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """Reads a tokenizer that `save_tokenizer` wrote.

    Raises:
        FileNotFoundError: the folder holds no `tokenizer.json`.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no tokenizer here; it is written by the supervised stage")
    return AutoTokenizer.from_pretrained(str(directory))


def encode_batch(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of many texts, without `<eos>`; in parallel threads of the Rust tokenizer.

    A space is put in front, so that a word is the same token at the start of an utterance, inside it and as a
    value.
    """
    spaced = [" " + text.strip() if text.strip() else "" for text in texts]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(spaced, add_special_tokens=False)
    return [tuple(encoding.ids) for encoding in encodings]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of a reply: everything before the first `<eos>`, control tokens dropped, placeholders kept."""
    ids = [int(i) for i in ids]
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    # A pre-trained model's tokenizer leaves the space that `encode_batch` has put in front.
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ")


def decode_batch(tokenizer: PreTrainedTokenizerFast, sequences: Sequence[Sequence[int]]) -> list[str]:
    """`decode` of many replies."""
    return [decode(tokenizer, ids) for ids in sequences]


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of one token.

    Raises:
        ValueError: the vocabulary has no such token, as in a tokenizer that was not made by `train_tokenizer`.
    """
    found = tokenizer.backend_tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}, expected one made by train_tokenizer")
    return found


def placeholder_ids(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Token id -> unified upper-case placeholder name, for example `{93: "NAME", ...}`."""
    return {token_id(tokenizer, p): unify(p[1:-1]) for p in PLACEHOLDERS}
