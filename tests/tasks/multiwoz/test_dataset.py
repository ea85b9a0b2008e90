"""The corpus cache and the `datasets` view of a corpus."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from morejax.tasks.multiwoz import dataset, reader
from morejax.tasks.multiwoz.dataset import INDEX_FILE, load_corpus, to_dataset
from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.records import Corpus


def same(left: Corpus, right: Corpus) -> bool:
    return all(getattr(left, name) == getattr(right, name) for name in ("name", "root", "splits", "schema", "skipped"))


def caches(folder: Path) -> list[Path]:
    return sorted((folder / "multiwoz").iterdir())


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Corpora that are parsed, in order; what comes from the cache is not among them."""
    parsed: list[Path] = []
    original = reader.read_corpus

    def counted(root: Path) -> Corpus:
        parsed.append(root)
        return original(root)

    monkeypatch.setattr(reader, "read_corpus", counted)
    return parsed


def test_second_start_reads_the_same_corpus_from_the_cache(
    tiny_root: Path, tmp_path: Path, parses: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    first = load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    second = load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert parses == [tiny_root]
    assert same(first, second)
    assert same(second, reader.read_corpus(tiny_root))
    assert [list(turn.state) for turn in second.splits["dev"][0].turns] == [["hotel"], ["hotel", "train"]]
    assert [path.name[0] for path in caches(tmp_path / "cache")] != ["."]
    assert capfd.readouterr().err == ""  # no progress bars
    assert not datasets.are_progress_bars_disabled()


def test_skips_are_logged_again_from_the_cache(
    tiny_root: Path, tmp_path: Path, edit_json: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(tiny_root / "goals.json", lambda goals: goals.pop("tr01") and None)
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    caplog.clear()
    assert load_corpus(tiny_root, cache_dir=tmp_path / "cache").skipped == {"train dialogues left out: no goal": 1}
    assert "left out" in caplog.text


@pytest.mark.parametrize(
    "source", ["goals.json", "MultiWOZ_2.2/train/dialogues_002.json", "MultiWOZ_2.2/dialog_acts.json"]
)
def test_changed_source_is_parsed_again(tiny_root: Path, tmp_path: Path, parses: list[Path], source: str) -> None:
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    path = tiny_root / source
    path.write_text(path.read_text() + "\n")
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert len(parses) == 2


def test_newer_reader_parses_again(
    tiny_root: Path, tmp_path: Path, parses: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(reader, "READER_VERSION", reader.READER_VERSION + 1)
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert len(parses) == 2


def cut_arrow(cache: Path) -> None:
    arrow = next((cache / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-200])


def flip_arrow(cache: Path) -> None:
    arrow = next((cache / "dev").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes().replace(b"Heron", b"Raven"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: (cache / INDEX_FILE).unlink(),
        lambda cache: (cache / INDEX_FILE).write_text('{"splits": ['),
        lambda cache: (cache / INDEX_FILE).write_text("{}"),
        cut_arrow,
        flip_arrow,
    ],
    ids=["no index", "broken index", "empty index", "arrow file cut", "arrow file altered"],
)
def test_damaged_cache_is_rebuilt_with_a_warning(
    tiny_root: Path,
    tmp_path: Path,
    parses: list[Path],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], Any],
) -> None:
    first = load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    (cache,) = caches(tmp_path / "cache")
    damage(cache)
    with caplog.at_level(logging.WARNING):
        assert same(load_corpus(tiny_root, cache_dir=tmp_path / "cache"), first)
    assert f"{cache}: damaged corpus cache" in caplog.text
    load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert len(parses) == 2


def test_interrupted_writing_leaves_no_cache(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_digests", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert caches(tmp_path / "cache") == []


def test_unwritable_cache_is_a_warning(tiny_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert load_corpus(tiny_root, cache_dir=tmp_path / "cache").splits["dev"]
    assert "corpus cache not written" in caplog.text


def test_cache_folder_from_the_environment(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOREJAX_CACHE", str(tmp_path / "elsewhere"))
    load_corpus(tiny_root)
    assert len(caches(tmp_path / "elsewhere")) == 1


def test_broken_corpus_is_an_error_and_is_not_cached(tiny_root: Path, tmp_path: Path) -> None:
    (tiny_root / "goals.json").write_text("{")
    with pytest.raises(CorpusError, match="goals"):
        load_corpus(tiny_root, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_to_dataset_has_one_row_a_turn(tiny_root: Path) -> None:
    rows = to_dataset(reader.read_corpus(tiny_root), "train+part")
    assert rows["dialogue_id"][:] == ["tr01", "tr01", "tr02", "tr02", "dv02", "dv02"]
    last = rows[5]
    assert (last["turn"], last["split"], last["booked"]) == (1, "dev", ["hotel"])
    assert last["delex"] == "booked, the number is [reference]."
    assert json.loads(last["state"])["train"] == {"leave": "09:05"}
    assert json.loads(last["acts"]) == [["booking", "book", ["ref"]]]
    assert json.loads(last["goal"])["hotel"]["requestable"] == ["REFERENCE"]


def test_real_corpus_starts_fast(real_root: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    first = load_corpus(real_root, cache_dir=tmp_path)
    cold = time.perf_counter() - began
    second = load_corpus(real_root, cache_dir=tmp_path)
    warm = time.perf_counter() - began - cold
    assert same(first, second)
    assert len(second.splits["dev"]) == 1000
    assert cold < 45.0  # 4 to 6 s on two idle cores
    assert warm < 9.0  # 1 to 1.5 s
