"""Tokenizer and chat template go along; a vocabulary extended by the task's tokens survives the round trip; the hub."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from morejax.models import hf
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.canonical import PLACEHOLDERS

sys.path.append(str(Path(__file__).parent))
from small_folder import CHAT_TEMPLATE, small_tokenizer, write_small_folder

TEXT = "the phone number is [phone] . code#[reference]!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_folder(tmp_path_factory.mktemp("hub") / "small")


def test_the_chat_template_is_usable_after_loading_and_saving(folder, tmp_path):
    loaded = hf.load_pretrained(folder)
    hf.save_pretrained(tmp_path, loaded.config, loaded.params, tokenizer=folder, generation={"temperature": 0.7})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "hello"}]
    said = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert said == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    config, generation = AutoConfig.from_pretrained(tmp_path), GenerationConfig.from_pretrained(tmp_path)
    assert config.eos_token_id == generation.eos_token_id == tokenizer.eos_token_id
    assert config.vocab_size == len(tokenizer) + 5
    assert generation.temperature == 0.7


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer \(tokenizer\.json, tokenizer\.model or vocab\.json\)"):
        hf.load_tokenizer(tmp_path)


def test_an_extended_vocabulary_survives_the_round_trip(folder, tmp_path):
    before = hf.load_tokenizer(folder)
    plain = hf.load_pretrained(folder)
    tokenizer = vocabulary.extend_tokenizer(hf.load_tokenizer(folder), plain.config.vocab_size)
    assert len(tokenizer) % 64 == 0
    assert len(tokenizer) >= len(before) + len(vocabulary.special_tokens()) + len(PLACEHOLDERS)
    extended = hf.load_pretrained(folder, vocab_size=len(tokenizer))
    known = plain.config.vocab_size
    table = np.asarray(extended.params["trunk"]["embedding"])
    np.testing.assert_array_equal(table[:known], plain.params["trunk"]["embedding"])
    hf.save_pretrained(tmp_path, extended.config, extended.params, tokenizer=tokenizer)
    again, loaded = hf.load_tokenizer(tmp_path), hf.load_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.params["trunk"]["embedding"], table)
    for name in (*vocabulary.special_tokens(), *PLACEHOLDERS):
        assert vocabulary.token_id(again, name) == vocabulary.token_id(tokenizer, name) >= len(before)
    assert (again.pad_token, again.eos_token, again.chat_template) == ("<pad>", "<eos>", CHAT_TEMPLATE)
    ids = vocabulary.encode_batch(again, [TEXT])[0]
    assert ids == vocabulary.encode_batch(tokenizer, [TEXT])[0]
    assert vocabulary.decode(again, ids) == TEXT
    assert len(set(ids) & set(vocabulary.placeholder_ids(again))) == 2
    # Programs that load the family's own class decode alike.
    other = AutoTokenizer.from_pretrained(tmp_path)
    assert type(other) is not type(again)
    assert other.decode(ids) == " " + TEXT
    assert other.encode(" " + TEXT, add_special_tokens=False) == list(ids)
    assert hf.logits_of(tmp_path, [ids]).shape == (1, len(ids), len(tokenizer))


def test_ids_of_words_stay_what_the_model_knows(folder):
    words = "the phone number of the restaurant"
    before, after = small_tokenizer(), vocabulary.extend_tokenizer(small_tokenizer())
    ids = before.backend_tokenizer.encode(" " + words, add_special_tokens=False).ids
    assert vocabulary.encode_batch(after, [words.upper()])[0] == tuple(ids)


def test_another_kind_of_tokenizer_is_refused():
    from tokenizers import Tokenizer, decoders, models

    other = Tokenizer(models.BPE())
    other.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match=r"decodes by Metaspace, expected a byte-level BPE \(ByteLevel\)"):
        vocabulary.extend_tokenizer(PreTrainedTokenizerFast(tokenizer_object=other))


# The hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The three requests that a snapshot needs: what a repository holds, a file's head, a file."""

    folder: Path
    asked: list[str]

    def _send(self, body: bytes, head: bool, **headers: str) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def _answer(self, head: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/me/small"):
            listed = [{"rfilename": name} for name in files]
            body = {"id": "me/small", "sha": COMMIT, "siblings": listed, "private": False, "tags": [], "downloads": 0}
            if "/tree/" in path:
                body = [{"type": "file", "path": name, "oid": "0", "size": 1} for name in files]
            self._send(json.dumps(body).encode(), head, Content_Type="application/json")
        elif path.startswith("/me/small/resolve/") and (name := path.split("/", 5)[5]) in files:
            content = (self.folder / name).read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(content, head, ETag=tag, X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub on this machine, and a client that asks it."""
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield handler.asked
    server.shutdown()
    server.server_close()


def test_a_hub_id_is_downloaded_once(hub, folder):
    (folder / "README.md").write_text("not needed")
    loaded = hf.load_pretrained("me/small")
    assert (loaded.folder / "config.json").is_file()
    assert not (loaded.folder / "README.md").exists()
    own = hf.load_pretrained(folder)
    np.testing.assert_array_equal(loaded.params["trunk"]["embedding"], own.params["trunk"]["embedding"])
    assert hf.load_tokenizer(loaded.folder).chat_template == CHAT_TEMPLATE
    fetched = [path for path in hub if path.endswith("tokenizer.json")]
    hf.local_folder("me/small")
    assert [path for path in hub if path.endswith("tokenizer.json")] == fetched != []


def test_a_hub_id_that_is_not_there_is_named(hub):
    with pytest.raises(FileNotFoundError, match="me/other: no such folder, and not to be had from the hub"):
        hf.load_pretrained("me/other")
    with pytest.raises(FileNotFoundError, match="no/such/folder: no such folder, and not to be had from the hub"):
        hf.load_pretrained("no/such/folder")
