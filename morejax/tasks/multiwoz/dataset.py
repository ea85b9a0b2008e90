"""Parsed corpora as `datasets.Dataset`s, cached on disk so that a second start is fast."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from morejax.tasks.multiwoz import (
    annotations,
    canonical,
    delexicalise,
    jsonfiles,
    layout,
    normalise,
    reader,
    records,
)
from morejax.tasks.multiwoz.layout import Layout, find_layout
from morejax.tasks.multiwoz.records import Act, Corpus, Dialogue, Schema, Turn

CACHE_VARIABLE = "MOREJAX_CACHE"
INDEX_FILE = "index.json"

_PARSERS = (annotations, canonical, delexicalise, jsonfiles, layout, normalise, reader, records)

logger = logging.getLogger(__name__)


def load_corpus(root: str | Path, *, cache_dir: str | Path | None = None) -> Corpus:
    """Read a corpus, from the cache if the same files have been parsed before.

    The cache is keyed by the content of the source files and by the code that parses them, so a changed
    corpus or a newer reader never meets old records. It is derived data: it may be deleted at any time, and
    a damaged one is rebuilt with a warning.

    Args:
        root: folder in the release's layout (see `morejax.tasks.multiwoz.layout.find_layout`).
        cache_dir: where caches are kept; by default the environment variable MOREJAX_CACHE or else
            ``~/.cache/morejax``.

    Returns:
        The same corpus as `morejax.tasks.multiwoz.reader.read_corpus` gives, all splits.

    Raises:
        CorpusError: the corpus is missing or broken.
    """
    files = find_layout(root)
    folder = _cache_root(cache_dir) / "multiwoz" / corpus_fingerprint(files)
    if folder.exists():
        try:
            return _load(files, folder)
        except Exception as error:  # whatever is wrong with a derived file, rebuilding it is the answer
            logger.warning("%s: damaged corpus cache (%s: %s), rebuilding it", folder, type(error).__name__, error)
            shutil.rmtree(folder, ignore_errors=True)
    corpus = reader.read_corpus(root)
    try:
        _save(corpus, files, folder)
    except OSError as error:
        logger.warning("%s: corpus cache not written (%s); the next start parses again", folder, error)
    return corpus


def to_dataset(corpus: Corpus, split: str) -> datasets.Dataset:
    """One row a system turn, for looking at a corpus or filtering it with the tools of `datasets`.

    Args:
        corpus: parsed corpus.
        split: one split, or several joined by ``+``.

    Returns:
        Columns dialogue_id, split, turn, user, response, delex, state (JSON), requested, acts (JSON list of
        ``[domain, intent, slots]``), booked, goal (JSON).
    """
    rows = [_turn_row(dialogue, turn) for dialogue in corpus.dialogues(split) for turn in dialogue.turns]
    return datasets.Dataset.from_list(rows)


def corpus_fingerprint(files: Layout) -> str:
    """Digest of the source files' names and content and of the parsing code, 32 hexadecimal digits."""
    digest = hashlib.blake2b(f"reader {reader.READER_VERSION}".encode(), digest_size=16)
    for module in _PARSERS:
        digest.update(Path(str(module.__file__)).read_bytes())
    for path in files.sources():
        content = jsonfiles.read_bytes(path)
        digest.update(f"\0{path.relative_to(files.root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _turn_row(dialogue: Dialogue, turn: Turn) -> dict[str, Any]:
    return {
        "dialogue_id": dialogue.id,
        "split": dialogue.split,
        "turn": turn.index,
        "user": turn.user,
        "response": turn.response,
        "delex": turn.delex,
        "state": json.dumps(turn.state),
        "requested": list(turn.requested),
        "acts": json.dumps(_act_rows(turn)),
        "booked": list(turn.booked),
        "goal": json.dumps(dialogue.goal),
    }


def _cache_root(cache_dir: str | Path | None) -> Path:
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "morejax"
    return Path(chosen).expanduser()


def _save(corpus: Corpus, files: Layout, folder: Path) -> None:
    """Write the cache beside its final place and rename it, so that a reader never sees half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        bases = {split: corpus.splits[split] for split in files.base_splits()}
        with _quiet_datasets():
            for split, dialogues in bases.items():
                datasets.Dataset.from_dict(_columns(dialogues)).save_to_disk(building / split)
        index = {
            "splits": list(bases),
            "schema": {name: dict(slots) for name, slots in corpus.schema.services.items()},
            "skipped": corpus.skipped,
            "digests": _digests(building),
        }
        (building / INDEX_FILE).write_text(json.dumps(index))
        _rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _rename(building: Path, folder: Path) -> None:
    try:
        building.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        logger.debug("%s: another process wrote the same cache first", folder)


def _load(files: Layout, folder: Path) -> Corpus:
    index = json.loads((folder / INDEX_FILE).read_text())
    if index["digests"] != _digests(folder):
        raise ValueError("content differs from what was written")
    with reader.collector_paused(), _quiet_datasets():
        bases = {split: tuple(_read_dialogues(folder / split, split)) for split in index["splits"]}
    services = {
        name: {slot: tuple(values) for slot, values in slots.items()} for name, slots in index["schema"].items()
    }
    return reader.assemble(files, bases, reader.read_parts(files), Schema(services), index["skipped"])


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != INDEX_FILE)
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in paths
    }


def _columns(dialogues: Iterable[Dialogue]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {"dialogue_id": [], "goal": [], "turns": []}
    for dialogue in dialogues:
        columns["dialogue_id"].append(dialogue.id)
        columns["goal"].append(json.dumps(dialogue.goal))
        columns["turns"].append(json.dumps([_turn_values(turn) for turn in dialogue.turns]))
    return columns


def _read_dialogues(folder: Path, split: str) -> Iterator[Dialogue]:
    table: Any = datasets.load_from_disk(str(folder))
    for key, goal, turns in zip(table["dialogue_id"], table["goal"], table["turns"], strict=True):
        yield Dialogue(key, split, tuple(_turn(values) for values in json.loads(turns)), json.loads(goal))


def _turn_values(turn: Turn) -> list[Any]:
    plain = [turn.index, turn.user, turn.response, turn.delex, turn.state, turn.requested]
    return [*plain, _act_rows(turn), turn.booked]


def _turn(values: list[Any]) -> Turn:
    index, user, response, delex, state, requested, acts, booked = values
    parsed = tuple(Act(domain, intent, tuple(slots)) for domain, intent, slots in acts)
    return Turn(index, user, response, delex, state, tuple(requested), parsed, tuple(booked))


def _act_rows(turn: Turn) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(act.domain, act.intent, act.slots) for act in turn.acts]


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
