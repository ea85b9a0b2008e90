"""Where the files of a corpus in the MultiWOZ 2.2 layout lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.jsonfiles import DOWNLOAD_COMMAND, read_json
from morejax.tasks.multiwoz.records import REAL_CORPUS_NAME

BASE_SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Layout:
    """Files of a corpus folder.

    Attributes:
        root: folder the user named.
        dialogues: folder with ``train/``, ``dev/``, ``test/``, ``dialog_acts.json`` and ``schema.json``.
        databases: folder with ``*_db.json``.
    """

    root: Path
    dialogues: Path
    databases: Path

    @property
    def schema(self) -> Path:
        """Services and slots."""
        return self.dialogues / "schema.json"

    @property
    def acts(self) -> Path:
        """Dialogue acts and character spans of every turn."""
        return self.dialogues / "dialog_acts.json"

    @property
    def goals(self) -> Path:
        """User goals in scorer form."""
        return self.root / "goals.json"

    @property
    def booked(self) -> Path:
        """Domains booked by each system turn."""
        return self.root / "booked_domains.json"

    @property
    def dev_splits(self) -> Path:
        """Optional named parts of dev."""
        return self.root / "dev_splits.json"

    @property
    def marker(self) -> Path:
        """Optional name of the corpus; absent in MultiWOZ 2.2 itself."""
        return self.root / "corpus.json"

    def corpus_name(self) -> str:
        """Name in the marker file, ``"multiwoz-2.2"`` without one.

        Raises:
            CorpusError: the marker holds no name.
        """
        if not self.marker.exists():
            return REAL_CORPUS_NAME
        name = read_json(self.marker, dict).get("name")
        if not isinstance(name, str) or not name:
            raise CorpusError(f'{self.marker}: found name {name!r}, expected a string, e.g. {{"name": "embedded"}}')
        return name

    def base_splits(self) -> tuple[str, ...]:
        """The release's splits that this folder has."""
        return tuple(split for split in BASE_SPLITS if (self.dialogues / split).is_dir())

    def dialogue_files(self, split: str) -> tuple[Path, ...]:
        """Dialogue files of a split in file order.

        Raises:
            CorpusError: the folder is missing or holds no dialogue file.
        """
        folder = self.dialogues / split
        if not folder.is_dir():
            have = ", ".join(self.base_splits()) or "none of train, dev, test"
            raise CorpusError(
                f"{folder}: no such folder, no split {split!r} (found {have}); fetch it: {DOWNLOAD_COMMAND}"
            )
        files = tuple(sorted(folder.glob("dialogues_*.json")))
        if not files:
            raise CorpusError(f"{folder}: split {split!r} is empty, expected files dialogues_001.json, ...")
        return files

    def sources(self) -> Iterator[Path]:
        """Every file that the parsed records depend on (the databases are read afresh each time)."""
        yield from (self.schema, self.acts, self.goals, self.booked)
        yield from (path for path in (self.dev_splits, self.marker) if path.exists())
        for split in self.base_splits():
            yield from self.dialogue_files(split)


def find_layout(root: str | Path) -> Layout:
    """Find the files under ``root``.

    Accepted: a folder with ``MultiWOZ_2.2/`` and ``db/`` (what the download command writes), a checkout of
    the release (``data/MultiWOZ_2.2/`` and ``db/``), and ``MultiWOZ_2.2`` itself, with ``db/`` in it,
    beside it or two folders up. Goals and booked domains lie in ``root`` itself.

    Raises:
        CorpusError: the folder does not exist, or the dialogues or databases are not there.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder; expected a MultiWOZ 2.2 corpus (fetch it: {DOWNLOAD_COMMAND})")
    dialogues = _first(root / "MultiWOZ_2.2", root / "data" / "MultiWOZ_2.2", root, having=BASE_SPLITS)
    if dialogues is None:
        raise CorpusError(
            f"{root}: found neither MultiWOZ_2.2/, data/MultiWOZ_2.2/ nor train/, dev/ or test/; expected "
            f"the MultiWOZ 2.2 layout (fetch it: {DOWNLOAD_COMMAND})"
        )
    resolved = dialogues.resolve()
    places = (root / "db", resolved.parent / "db", resolved.parent.parent / "db")
    databases = next((place for place in places if place.is_dir()), None)
    if databases is None:
        raise CorpusError(
            f"{root / 'db'}: no such folder; expected databases *_db.json (fetch them: {DOWNLOAD_COMMAND})"
        )
    return Layout(root, dialogues, databases)


def _first(*folders: Path, having: tuple[str, ...]) -> Path | None:
    return next((folder for folder in folders if any((folder / name).is_dir() for name in having)), None)
