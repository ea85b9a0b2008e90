"""JSON files of a corpus: read with errors that say where; known defects of the public databases mended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from morejax.tasks.multiwoz.errors import CorpusError

DOWNLOAD_COMMAND = "python -m morejax.tasks.multiwoz.download --to DIR"

_MISSING_COMMA = re.compile(r'\](\s*\n\s*")')
_BARE_KEY = re.compile(r"^(\s*)(\w+)(\s*:)", re.MULTILINE)


def read_json(path: Path, expected: type[list] | type[dict]) -> Any:
    """Parse a JSON file whose outermost value is a list or an object.

    Args:
        path: file to read.
        expected: ``list`` or ``dict``.

    Raises:
        CorpusError: the file is missing, truncated, not JSON or of the wrong outermost type.
    """
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, expected):
        raise CorpusError(
            f"{path}: found a JSON {type(value).__name__} outermost, expected a {expected.__name__}; "
            f"this is not the file of the MultiWOZ 2.2 release (fetch it: {DOWNLOAD_COMMAND})"
        )
    return value


def read_bytes(path: Path) -> bytes:
    """Content of a file of the corpus.

    Raises:
        CorpusError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; fetch the corpus with `{DOWNLOAD_COMMAND}`") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(content: bytes, where: Path | str) -> Any:
    """Parse JSON; ``where`` names the source in errors.

    Raises:
        CorpusError: naming the source, the position and whether the text ends too early.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 text at byte {error.start}, expected JSON") from error
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: {_describe(error, len(content))}; fetch it again: {DOWNLOAD_COMMAND}") from error


def _describe(error: json.JSONDecodeError, size: int) -> str:
    position = f"line {error.lineno} column {error.colno} (character {error.pos} of {size})"
    cut = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated string")
    return f"truncated JSON, ends at {position}" if cut else f"invalid JSON at {position}: {error.msg}"


def parse_database_json(content: bytes, where: Path | str) -> Any:
    """Parse a database file, also in the two forms of the public release that are not JSON.

    The release's ``hospital_db.json`` starts with ``#`` lines, and its ``taxi_db.json`` writes one object's
    pairs straight into a list (``["taxi_colors": [...]]``), in older versions with single quotes and a
    missing comma.

    Raises:
        CorpusError: the content is neither JSON nor one of these forms.
    """
    try:
        return parse_json(content, where)
    except CorpusError as error:
        for mended in _mended(content.decode("utf-8", errors="replace")):
            try:
                return json.loads(mended)
            except json.JSONDecodeError:
                continue
        raise error


def _mended(text: str) -> tuple[str, str]:
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
    pairs = _BARE_KEY.sub(r'\1"\2"\3', body.strip("[] \n").strip("{} \n").replace("'", '"'))
    if not pairs.endswith("]"):
        pairs += "]"
    return body, "[{" + _MISSING_COMMA.sub(r"],\1", pairs) + "}]"
