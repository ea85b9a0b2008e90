"""Fetch the public MultiWOZ 2.2 files: ``python -m morejax.tasks.multiwoz.download --to DIR``.

Dialogues, acts, schema and databases come from budzianowski/multiwoz, goals and booked domains from
Tomiinek/MultiWOZ_Evaluation. A mirror given with ``--base-url`` serves the same relative paths as
raw.githubusercontent.com::

    BASE/budzianowski/multiwoz/master/data/MultiWOZ_2.2/{schema,dialog_acts}.json
    BASE/budzianowski/multiwoz/master/data/MultiWOZ_2.2/{train,dev,test}/dialogues_NNN.json
    BASE/budzianowski/multiwoz/master/db/*_db.json
    BASE/Tomiinek/MultiWOZ_Evaluation/master/mwzeval/data/{goals,booked_domains}.json

A file is fetched into ``NAME.part`` (continued there after an interruption) and takes its own name when it is
complete and holds JSON, so whatever lies under its own name is whole.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.jsonfiles import parse_database_json, parse_json

DEFAULT_BASE_URL = "https://raw.githubusercontent.com"
ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0

_RELEASE = "budzianowski/multiwoz/master"
_SCORER = "Tomiinek/MultiWOZ_Evaluation/master/mwzeval/data"
_DIALOGUE_FILES = {"train": 17, "dev": 2, "test": 2}
_DATABASES = ("attraction", "bus", "hospital", "hotel", "police", "restaurant", "taxi", "train")
_CHUNK_BYTES = 1 << 16
_DESCRIPTION = """\
Fetch the public MultiWOZ 2.2 files (MIT licence): dialogues, acts, schema, databases, goals. What is there
already is not fetched again; after an interruption the same command continues.
"""
_EPILOG = """\
example:
  python -m morejax.tasks.multiwoz.download --to data/multiwoz22
  python -m morejax.experiments.multiwoz --preset cpu --data-dir data/multiwoz22 --out runs/mwz
"""
_TEMPORARY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file that could not be fetched; the message names its URL, the file and what was found."""


class _Interrupted(Exception):
    """A transfer that may succeed when tried again."""


@dataclass(frozen=True)
class RemoteFile:
    """A public file: its path under the base URL and its path in the corpus folder."""

    remote: str
    local: str

    @property
    def is_database(self) -> bool:
        """Whether it is a database, which the release holds partly in forms that are not JSON."""
        return self.local.startswith("db/")


def release_files() -> tuple[RemoteFile, ...]:
    """Every file of the corpus, the small ones first so that a wrong base URL shows at once."""
    names = [f"{split}/dialogues_{n:03d}.json" for split, count in _DIALOGUE_FILES.items() for n in range(1, count + 1)]
    dialogues = [f"MultiWOZ_2.2/{name}" for name in ("schema.json", *names, "dialog_acts.json")]
    databases = [f"db/{domain}_db.json" for domain in _DATABASES]
    return (
        *(RemoteFile(f"{_RELEASE}/{name}", name) for name in databases),
        *(RemoteFile(f"{_RELEASE}/data/{name}", name) for name in dialogues),
        *(RemoteFile(f"{_SCORER}/{name}", name) for name in ("goals.json", "booked_domains.json")),
    )


def download(
    to: str | Path,
    *,
    base_url: str = DEFAULT_BASE_URL,
    files: Sequence[RemoteFile] | None = None,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
    progress: bool = True,
) -> list[Path]:
    """Fetch the corpus into a folder; complete files are kept, a partial one is continued.

    Args:
        to: folder to write, made if it does not exist.
        base_url: server with the relative paths listed in this module's docstring.
        files: what to fetch, by default `release_files`.
        attempts: tries for each file, with pauses of 1, 2, 4, ... seconds between them.
        sleep: waits that many seconds.
        progress: whether to draw progress bars on standard error.

    Returns:
        Paths of the files that were fetched now.

    Raises:
        DownloadError: a file is not there, or did not arrive whole and valid in any attempt.
    """
    wanted = release_files() if files is None else files
    folder = Path(to).expanduser()
    missing = [file for file in wanted if not _is_complete(folder / file.local, file)]
    fetched = []
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="file", disable=not progress) as bar:
        for file in missing:
            bar.set_postfix_str(file.local)
            fetched.append(_fetch(file, folder / file.local, base_url.rstrip("/"), attempts, sleep, progress))
            bar.update()
    return fetched


def _is_complete(path: Path, file: RemoteFile) -> bool:
    if not path.exists():
        return False
    try:
        _parse(path.read_bytes(), path, file)
    except CorpusError as error:
        logger.warning("%s; fetching it anew", error)
        return False
    return True


def _fetch(
    file: RemoteFile, path: Path, base_url: str, attempts: int, sleep: Callable[[float], None], progress: bool
) -> Path:
    url = f"{base_url}/{file.remote}"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(attempts):
        try:
            continued = _transfer(url, part, progress)
            _finish(url, part, path, file, continued)
            return path
        except _Interrupted as error:
            if attempt + 1 == attempts:
                raise DownloadError(
                    f"{url} -> {path}: {error}; gave up after {attempts} attempts, run again to continue"
                ) from error
            logger.warning("%s: %s; trying again", url, error)
            sleep(2.0**attempt)
    raise DownloadError(f"{url} -> {path}: not tried, expected at least 1 attempt, found {attempts}")


def _transfer(url: str, part: Path, progress: bool) -> bool:
    """Fetch what is missing of a file into ``part``.

    Returns:
        When all the announced bytes are there: whether earlier bytes were continued.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "morejax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return _receive(response, part, have, progress)
    except urllib.error.HTTPError as error:
        return _handle_status(error, url, part, have)
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"connection failed ({getattr(error, 'reason', None) or error!r})") from error


def _receive(response: HTTPResponse, part: Path, have: int, progress: bool) -> bool:
    continued = response.status == 206 and _range_start(response) == have
    if have and response.status == 206 and not continued:
        part.unlink()
        raise _Interrupted(f"server sent range {response.headers['Content-Range']!r}, expected it to start at {have}")
    start = have if continued else 0
    announced = response.headers["Content-Length"]
    total = start + int(announced) if announced else None
    bar = tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem,
        leave=False,
        disable=not progress,
    )
    with part.open("ab" if continued else "wb") as target, bar:
        while chunk := response.read(_CHUNK_BYTES):
            target.write(chunk)
            bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Interrupted(f"body ended after {size} bytes, expected {total}")
    return continued


def _range_start(response: HTTPResponse) -> int | None:
    """First byte of ``Content-Range: bytes 100-999/1000``."""
    unit, _, rest = (response.headers["Content-Range"] or "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None


def _handle_status(error: urllib.error.HTTPError, url: str, part: Path, have: int) -> bool:
    if error.code == 416 and have:
        total = (error.headers["Content-Range"] or "").rpartition("/")[2]
        if total == str(have):
            return True
        part.unlink()
        raise _Interrupted(f"partial file of {have} bytes does not fit the server's file of {total or 'unknown'} bytes")
    if error.code in _TEMPORARY_STATUS:
        raise _Interrupted(f"HTTP status {error.code} ({error.reason})")
    raise DownloadError(
        f"{url} -> {part.with_suffix('')}: HTTP status {error.code} ({error.reason}), expected 200; "
        "check --base-url, which must serve the paths of raw.githubusercontent.com"
    ) from error


def _finish(url: str, part: Path, path: Path, file: RemoteFile, continued: bool) -> None:
    """Check that the complete ``part`` holds JSON and give it its name."""
    content = part.read_bytes()
    try:
        value = _parse(content, url, file)
    except CorpusError as error:
        part.unlink()
        if continued:  # the earlier bytes may be of another version: one fetch of the whole file decides
            raise _Interrupted(f"{len(content)} continued bytes are not JSON") from error
        raise DownloadError(f"{url} -> {path}: {len(content)} bytes arrived, expected JSON ({error})") from error
    if file.is_database and not _is_json(content):
        logger.info("%s: the public file is not JSON as it stands; mended", path)
        part.write_text(json.dumps(value, ensure_ascii=False))
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)


def _parse(content: bytes, where: Path | str, file: RemoteFile) -> Any:
    return parse_database_json(content, where) if file.is_database else parse_json(content, where)


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.tasks.multiwoz.download",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to write; later the value of --data-dir")
    parser.add_argument(
        "--base-url",
        metavar="URL",
        default=DEFAULT_BASE_URL,
        help="mirror that serves the paths of raw.githubusercontent.com, e.g. "
        "URL/budzianowski/multiwoz/master/db/hotel_db.json (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        fetched = download(options.to, base_url=options.base_url)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130
    already = len(release_files()) - len(fetched)
    print(f"{options.to}: {len(fetched)} files fetched, {already} were already complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
