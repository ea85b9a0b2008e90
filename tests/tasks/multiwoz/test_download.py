"""Downloads from a local HTTP server: whole, interrupted and continued, cut short, not JSON, not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from morejax.tasks.multiwoz.download import DownloadError, RemoteFile, download, main, release_files

GOALS = RemoteFile("Tomiinek/MultiWOZ_Evaluation/master/mwzeval/data/goals.json", "goals.json")
CONTENT = json.dumps({f"dlg{n:04d}": {"hotel": {"informable": {}, "requestable": []}} for n in range(300)}).encode()


@dataclass
class Mirror:
    """What the server holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    cut_after: list[int] = field(default_factory=list)  # bytes sent before hanging up, for the next requests
    statuses: list[int] = field(default_factory=list)  # statuses to answer the next requests with
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            mirror.requests.append((self.path, wanted))
            content = mirror.files.get(self.path.lstrip("/"))
            if mirror.statuses:
                self._empty(mirror.statuses.pop(0))
            elif content is None:
                self._empty(404)
            elif wanted and mirror.ranges:
                self._range(content, int(wanted.removeprefix("bytes=").removesuffix("-")))
            else:
                self.send_response(200)
                self._body(content)

        def _range(self, content: bytes, start: int) -> None:
            if start >= len(content):
                self._empty(416, f"bytes */{len(content)}")
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self._body(content[start:])

        def _body(self, content: bytes) -> None:
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: mirror.cut_after.pop(0)] if mirror.cut_after else content)

        def _empty(self, status: int, content_range: str | None = None) -> None:
            self.send_response(status)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror({file.remote: json.dumps([file.local]).encode() for file in release_files()})
    mirror.files[GOALS.remote] = CONTENT
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield mirror
    server.shutdown()
    thread.join()
    server.server_close()


def fetch_goals(mirror: Mirror, to: Path, pauses: list[float] | None = None, attempts: int = 3) -> list[Path]:
    sleep = (lambda seconds: None) if pauses is None else pauses.append
    return download(to, base_url=mirror.url, files=[GOALS], attempts=attempts, sleep=sleep, progress=False)


def test_release_is_33_files_in_the_readers_layout() -> None:
    local = [file.local for file in release_files()]
    assert len(local) == len(set(local)) == 8 + 2 + 17 + 2 + 2 + 2
    assert {"MultiWOZ_2.2/train/dialogues_017.json", "db/train_db.json", "booked_domains.json"} <= set(local)
    assert "budzianowski/multiwoz/master/data/MultiWOZ_2.2/schema.json" in [f.remote for f in release_files()]


def test_command_fetches_everything_then_nothing(mirror: Mirror, tmp_path: Path, capsys) -> None:
    assert main(["--to", str(tmp_path), "--base-url", mirror.url + "/"]) == 0
    assert f"{len(release_files())} files fetched" in capsys.readouterr().out
    for file in release_files():
        assert (tmp_path / file.local).read_bytes() == mirror.files[file.remote]
    assert not list(tmp_path.rglob("*.part"))
    asked = len(mirror.requests)
    assert main(["--to", str(tmp_path), "--base-url", mirror.url]) == 0
    assert len(mirror.requests) == asked
    assert "0 files fetched" in capsys.readouterr().out


def test_interrupted_download_is_continued_from_the_part_file(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "goals.json.part").write_bytes(CONTENT[:1000])
    assert fetch_goals(mirror, tmp_path) == [tmp_path / "goals.json"]
    assert (tmp_path / "goals.json").read_bytes() == CONTENT
    assert mirror.requests == [(f"/{GOALS.remote}", "bytes=1000-")]
    assert not (tmp_path / "goals.json.part").exists()


def test_truncated_bodies_are_continued_with_growing_pauses(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [700, 800]
    pauses: list[float] = []
    fetch_goals(mirror, tmp_path, pauses)
    assert (tmp_path / "goals.json").read_bytes() == CONTENT
    assert [wanted for _, wanted in mirror.requests] == [None, "bytes=700-", "bytes=1500-"]
    assert pauses == [1.0, 2.0]


def test_always_truncated_body_is_an_error_that_keeps_the_part(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut_after = [10, 0, 0]
    with pytest.raises(DownloadError, match=r"goals\.json.*ended after 10 bytes, expected \d+.*3 attempts"):
        fetch_goals(mirror, tmp_path)
    assert not (tmp_path / "goals.json").exists()
    assert (tmp_path / "goals.json.part").read_bytes() == CONTENT[:10]


def test_server_without_ranges_sends_the_whole_file_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges = False
    (tmp_path / "goals.json.part").write_bytes(CONTENT[:1000])
    fetch_goals(mirror, tmp_path)
    assert (tmp_path / "goals.json").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 5], ids=["already whole", "too long"])
def test_part_file_with_nothing_left_to_fetch(mirror: Mirror, tmp_path: Path, extra: int) -> None:
    (tmp_path / "goals.json.part").write_bytes(CONTENT + b" " * extra)
    fetch_goals(mirror, tmp_path)
    assert (tmp_path / "goals.json").read_bytes() == CONTENT
    assert len(mirror.requests) == (2 if extra else 1)


def test_part_of_another_version_is_fetched_anew(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "goals.json.part").write_bytes(b'{"other": "version", ' + b"x" * 500)
    fetch_goals(mirror, tmp_path)
    assert (tmp_path / "goals.json").read_bytes() == CONTENT


def test_invalid_json_is_an_error_and_leaves_nothing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files[GOALS.remote] = b"<html>not here</html>"
    with pytest.raises(DownloadError, match=rf"{mirror.url}/{GOALS.remote} -> .*goals\.json: 21 bytes.*expected JSON"):
        fetch_goals(mirror, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_truncated_file_under_its_final_name_is_fetched_anew(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "goals.json").write_bytes(CONTENT[:500])
    assert fetch_goals(mirror, tmp_path) == [tmp_path / "goals.json"]
    assert (tmp_path / "goals.json").read_bytes() == CONTENT


def test_missing_file_is_an_error_at_once(mirror: Mirror, tmp_path: Path, capsys) -> None:
    del mirror.files[release_files()[0].remote]
    assert main(["--to", str(tmp_path), "--base-url", mirror.url]) == 1
    error = capsys.readouterr().err
    assert all(part in error for part in ("HTTP status 404", "attraction_db.json", "--base-url"))
    assert len(mirror.requests) == 1


def test_busy_server_is_tried_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.statuses = [503, 429]
    fetch_goals(mirror, tmp_path)
    assert (tmp_path / "goals.json").read_bytes() == CONTENT


def test_unreachable_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/.*goals\.json.*connection failed"):
        fetch_goals(Mirror({}, url="http://127.0.0.1:9"), tmp_path, attempts=2)


WARD = [{"department": "children's ward"}]
TAXI = [{"taxi_types": ["a", "b"], "taxi_phone": ["^[0-9]{10}$"]}]


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (b"## Address: a road\n# Phone: 1\n\n[{\"department\": \"children's ward\"}]\n", WARD),
        (b'[\n  "taxi_types" : ["a","b"],\n  "taxi_phone": ["^[0-9]{10}$"]\n]\n', TAXI),
        (b"[\n  \"taxi_types\" : [\"a\",'b']\n  \"taxi_phone\": [\"^[0-9]{10}$\"]\n]\n", TAXI),
        (b"[{\ntaxi_types : [\"a\",\"b\"],\ntaxi_phone: [\"^[0-9]{10}$\"]\n}]\n", TAXI),
    ],
    ids=["comment lines", "pairs in a list", "single quotes", "bare keys"],
)  # fmt: skip
def test_databases_that_are_published_as_no_json_are_mended(
    mirror: Mirror, tmp_path: Path, published: bytes, expected: list
) -> None:
    file = RemoteFile("budzianowski/multiwoz/master/db/taxi_db.json", "db/taxi_db.json")
    mirror.files[file.remote] = published
    download(tmp_path, base_url=mirror.url, files=[file], progress=False)
    assert json.loads((tmp_path / "db" / "taxi_db.json").read_text()) == expected
