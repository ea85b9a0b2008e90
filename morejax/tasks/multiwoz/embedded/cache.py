"""The embedded corpus on disk: written once, then found again."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from morejax.tasks.multiwoz.embedded.generator import GENERATOR_VERSION
from morejax.tasks.multiwoz.embedded.writer import write_embedded


def embedded_root(cache_dir: str | Path | None = None, *, dialogues: int = 1500, seed: int = 0) -> Path:
    """Folder of the embedded corpus, written on first use.

    The corpus is written into a temporary folder and renamed, so a reader never sees half of it.

    Args:
        cache_dir: folder for caches; default: environment variable ``MOREJAX_CACHE`` or ``~/.cache/morejax``.
        dialogues: number of dialogues over all splits.
        seed: corpus seed.

    Returns:
        The corpus folder, to be given to `read_corpus`.
    """
    base = Path(cache_dir or os.environ.get("MOREJAX_CACHE") or Path.home() / ".cache" / "morejax")
    root = base / f"embedded-v{GENERATOR_VERSION}-{dialogues}-{seed}"
    if root.exists():
        return root
    base.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".embedded-", dir=base))
    try:
        write_embedded(temporary, dialogues=dialogues, seed=seed)
        _move(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _move(temporary: Path, root: Path) -> None:
    try:
        temporary.chmod(0o755)
        temporary.rename(root)
    except OSError:
        # Another process has written the same corpus meanwhile: its files are byte-identical.
        if not (root / "corpus.json").is_file():
            raise
