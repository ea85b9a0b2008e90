"""The tokenizer keeps markers whole, numbers digit by digit and spacing exact."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.canonical import PLACEHOLDERS
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.normalise import normalise_response
from morejax.tasks.multiwoz.reader import read_corpus

TEXTS = [
    "i would like a cheap place to eat in the north, please.",
    "[name] is a [price] place in the [area]. shall i book a table at 17:45?",
    "the phone number is [phone] and the reference is #[reference].",
    "there are [value_count] trains ([trainid] is the first), they leave at [time] on [day].",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.train_tokenizer(TEXTS, 500)


def ids_of(tokenizer, text):
    return vocabulary.encode_batch(tokenizer, [text])[0]


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(list(ids_of(tokenizer, text)))


def test_vocabulary_is_a_multiple_of_64_with_fixed_first_ids(tokenizer):
    assert len(tokenizer) == tokenizer.backend_tokenizer.get_vocab_size() == 512
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.convert_tokens_to_ids("<extra_0>") < 512


@pytest.mark.parametrize("token", [*vocabulary.special_tokens(), *PLACEHOLDERS])
def test_every_marker_is_one_token(tokenizer, token):
    assert tokenizer.convert_tokens_to_ids(token) is not None
    assert tokenizer.backend_tokenizer.token_to_id(token) == tokenizer.convert_tokens_to_ids(token)
    if token in PLACEHOLDERS:
        assert pieces(tokenizer, f"a {token} b")[1:2] == [token]


def test_numbers_are_read_digit_by_digit_and_case_is_folded(tokenizer):
    assert pieces(tokenizer, "17:45") == ["Ġ1", "7", ":", "4", "5"]
    assert ids_of(tokenizer, "PLEASE") == ids_of(tokenizer, "please")


def test_a_placeholder_takes_its_space_and_a_touching_one_is_joined(tokenizer):
    assert "Ġ" not in pieces(tokenizer, "is [name] a")
    assert pieces(tokenizer, "#[reference]")[-2:] == ["<join>", "[reference]"]


@pytest.mark.parametrize(
    "text",
    [
        "[name] is nice.",
        "so[price][price] it is",
        "call ([phone]), or #[reference]s!",
        "train [trainid] , then [trainid]",
        "",
        "caffè £5 ünïcode",
        *TEXTS[:4],
    ],
)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert vocabulary.decode(tokenizer, ids_of(tokenizer, text)) == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["[name]", "[postcode]", "at", " ", ", ", "'s", "#", "4", "x-"]), max_size=12))
def test_any_mixture_of_words_and_placeholders_round_trips(tokenizer, parts):
    text = " ".join("".join(parts).split())
    assert vocabulary.decode(tokenizer, ids_of(tokenizer, text)) == text


def test_decoding_stops_at_the_end_and_drops_control_tokens(tokenizer):
    system = tokenizer.convert_tokens_to_ids("<system>")
    reply = ids_of(tokenizer, "[name] is nice.")
    assert vocabulary.decode(tokenizer, [system, *reply, tokenizer.eos_token_id, *reply]) == "[name] is nice."


def test_placeholders_are_known_by_their_unified_name(tokenizer):
    names = vocabulary.placeholder_ids(tokenizer)
    assert names[tokenizer.convert_tokens_to_ids("[postcode]")] == "POST"
    assert len(names) == 20
    assert "" not in names.values()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "<db:0>"), (3, "<db:3>"), (4, "<db:4-10>"), (10, "<db:4-10>"), (11, "<db:11+>"), (999, "<db:11+>")],
)
def test_count_markers(count, expected):
    assert vocabulary.count_marker(count) == expected


def test_negative_count_is_refused():
    with pytest.raises(ValueError, match="negative, found -1"):
        vocabulary.count_marker(-1)


def test_saved_tokenizer_loads_with_auto_tokenizer(tokenizer, tmp_path):
    vocabulary.save_tokenizer(tokenizer, tmp_path)
    for loaded in (vocabulary.load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(str(tmp_path))):
        assert vocabulary.encode_batch(loaded, TEXTS) == vocabulary.encode_batch(tokenizer, TEXTS)
        assert vocabulary.decode_batch(loaded, vocabulary.encode_batch(loaded, TEXTS)) == TEXTS
        assert loaded(" " + TEXTS[0])["input_ids"] == list(ids_of(tokenizer, TEXTS[0]))
        assert (len(loaded), loaded.pad_token_id, loaded.eos_token_id) == (512, 0, 1)


def test_missing_tokenizer_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no tokenizer here"):
        vocabulary.load_tokenizer(tmp_path)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 100, expected at least"):
        vocabulary.train_tokenizer(TEXTS, 100)


def test_training_is_deterministic(tokenizer):
    again = vocabulary.train_tokenizer(TEXTS, 500)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_import_is_silent_without_torch():
    code = "import morejax.tasks.multiwoz.tokenizer, morejax.tasks.multiwoz.examples"
    environment = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "PyTorch" not in run.stderr + run.stdout


def check_replies(dialogues):
    replies = [t.delex for d in dialogues for t in d.turns]
    tokenizer = vocabulary.train_tokenizer(replies[: len(replies) // 2], 2048)
    decoded = vocabulary.decode_batch(tokenizer, vocabulary.encode_batch(tokenizer, replies))
    assert [normalise_response(d) for d in decoded] == [normalise_response(r) for r in replies]


def test_replies_of_the_embedded_corpus_keep_their_normal_form(tmp_path):
    corpus = read_corpus(write_embedded(tmp_path / "corpus", dialogues=200))
    check_replies(corpus.dialogues("train+dev+test"))


def test_replies_of_the_real_dev_split_keep_their_normal_form(real_root):
    check_replies(read_corpus(real_root, "dev").dialogues("dev"))


def test_a_foreign_token_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="no token '<spa>', expected one made by train_tokenizer"):
        vocabulary.token_id(tokenizer, "<spa>")
