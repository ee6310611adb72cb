"""Downloads from a real server on this machine."""

import errno
import json
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness import registry
from harness.data import fetch
from harness.data.catalogue import Download
from harness.errors import UserError
from harness.identity import file_digest
from tests.data.rows import KNOWEDIT, MEND


class Upstream(BaseHTTPRequestHandler):
    """Serves `bodies` under the version `etag`, or the rest of one; sends at most `most_bytes` of what it announces."""

    bodies: dict[str, bytes]
    sent: list[int]
    most_bytes: int | None = None
    etag = '"1"'

    def do_GET(self):
        body = self.bodies.get(self.path.strip("/"))
        if body is None:
            return self.send_error(404)
        start = 0
        if self.headers.get("If-Range") == self.etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        if self.etag:
            self.send_header("ETag", self.etag)
        self.end_headers()
        part = body[start:][: self.most_bytes]
        self.sent.append(len(part))
        self.wfile.write(part)
        return None

    def log_message(self, *args):
        pass


def with_downloads(downloads, monkeypatch):
    """Replace the upstream files of ZsRE."""
    zsre = registry.datasets.get("zsre")
    monkeypatch.setitem(registry.datasets._items, "zsre", replace(zsre, downloads=downloads))


@pytest.fixture
def upstream():
    """The handler of a running server, with its address as `url`."""
    handler = type("Handler", (Upstream,), {"bodies": {}, "sent": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def offered(upstream, monkeypatch):
    """ZsRE with two files on the server: `offered(sha256)` sets the published checksum of the first."""
    upstream.bodies["a.json"] = json.dumps([KNOWEDIT]).encode()
    upstream.bodies["b.json"] = json.dumps([MEND]).encode()

    def offer(sha256=None):
        downloads = (
            Download(f"{upstream.url}/a.json", "a.json", "MIT", sha256),
            Download(f"{upstream.url}/b.json", "b.json", "MIT"),
        )
        with_downloads(downloads, monkeypatch)

    offer()
    return offer


def names(folder: Path) -> set[str]:
    """All files but the lock."""
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".fetch.lock")}


def test_every_file_is_complete_and_its_checksum_is_recorded(upstream, offered, tmp_path):
    results = fetch.fetch("zsre", tmp_path)

    assert [result.path for result in results] == [tmp_path / "zsre" / name for name in ("a.json", "b.json")]
    assert (tmp_path / "zsre" / "a.json").read_bytes() == upstream.bodies["a.json"]
    assert all(result.is_new and result.is_first for result in results)
    assert json.loads((tmp_path / "zsre" / "checksums.json").read_text()) == {
        result.path.name: file_digest(result.path) for result in results
    }
    assert "first download, checksum recorded in checksums.json" in str(results[0])


def test_a_complete_file_is_not_downloaded_again(upstream, offered, tmp_path):
    fetch.fetch("zsre", tmp_path)
    upstream.bodies.clear()

    results = fetch.fetch("zsre", tmp_path)

    assert not any(result.is_new or result.is_first for result in results)
    assert "already exists, verified" in str(results[0])


def test_a_damaged_file_is_downloaded_again(upstream, offered, tmp_path):
    fetch.fetch("zsre", tmp_path)
    (tmp_path / "zsre" / "a.json").write_text("[]")

    results = fetch.fetch("zsre", tmp_path)

    assert [result.is_new for result in results] == [True, False]
    assert (tmp_path / "zsre" / "a.json").read_bytes() == upstream.bodies["a.json"]


def test_a_published_checksum_that_does_not_match_is_refused(offered, tmp_path):
    offered(sha256="0" * 64)

    with pytest.raises(UserError, match=r"a\.json: sha256 is [0-9a-f]{12}, not 0{12} as published"):
        fetch.fetch("zsre", tmp_path)

    assert names(tmp_path) == set()


def test_a_file_that_changed_upstream_since_the_first_fetch_is_refused(upstream, offered, tmp_path):
    fetch.fetch("zsre", tmp_path)
    (tmp_path / "zsre" / "a.json").unlink()
    upstream.bodies["a.json"] = json.dumps([KNOWEDIT, MEND]).encode()

    with pytest.raises(UserError, match=r"as recorded in .*checksums\.json by the first download"):
        fetch.fetch("zsre", tmp_path)

    assert names(tmp_path) == {"b.json", "checksums.json"}


def test_a_change_upstream_can_be_accepted_for_one_file(upstream, offered, tmp_path):
    fetch.fetch("zsre", tmp_path)
    (tmp_path / "zsre" / "a.json").write_text("[]")
    upstream.bodies["a.json"] = json.dumps([KNOWEDIT, MEND]).encode()
    with pytest.raises(UserError, match="as recorded in") as caught:
        fetch.fetch("zsre", tmp_path)

    forget, _, again = caught.value.fix.rpartition(" && ")
    subprocess.run(forget, shell=True, check=True)
    results = fetch.fetch("zsre", tmp_path)

    assert again == f"python -m harness data fetch zsre --to {tmp_path}"
    assert [(result.is_new, result.is_first) for result in results] == [(True, True), (False, False)]
    assert (tmp_path / "zsre" / "a.json").read_bytes() == upstream.bodies["a.json"]


def test_a_missing_page_is_reported_in_one_line(upstream, offered, tmp_path):
    del upstream.bodies["b.json"]

    with pytest.raises(UserError, match=r"b\.json: the server returned 404 Not Found") as caught:
        fetch.fetch("zsre", tmp_path)

    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"a.json", "checksums.json"}


def test_a_download_that_was_cut_off_is_continued(upstream, offered, tmp_path):
    body, upstream.most_bytes = upstream.bodies["a.json"], 100
    with pytest.raises(UserError, match=rf"cut off after 100 of {len(body)} bytes") as caught:
        fetch.fetch("zsre", tmp_path)
    assert caught.value.fix == f"python -m harness data fetch zsre --to {tmp_path}"

    upstream.most_bytes, seen = None, []
    result, _ = fetch.fetch("zsre", tmp_path, lambda *progress: seen.append(progress))

    assert upstream.sent[:2] == [100, len(body) - 100]
    assert result.path.read_bytes() == body
    assert seen[0] == ("a.json", len(body), len(body))
    assert names(tmp_path) == {"a.json", "b.json", "checksums.json"}


@pytest.mark.parametrize("etag", ['"2"', ""])
def test_a_download_starts_again_if_the_file_is_no_longer_the_same(upstream, offered, tmp_path, etag):
    upstream.most_bytes = 100
    with pytest.raises(UserError, match="cut off"):
        fetch.fetch("zsre", tmp_path)

    upstream.most_bytes, upstream.etag = None, etag
    upstream.bodies["a.json"] = json.dumps([KNOWEDIT, KNOWEDIT]).encode()
    result, _ = fetch.fetch("zsre", tmp_path)

    assert result.path.read_bytes() == upstream.bodies["a.json"]


def test_a_partial_file_that_is_longer_than_the_servers_is_not_continued(upstream, offered, tmp_path):
    upstream.most_bytes = 100
    with pytest.raises(UserError, match="cut off"):
        fetch.fetch("zsre", tmp_path)
    with (tmp_path / "zsre" / ".a.json.part").open("ab") as part:
        part.write(b" " * 10_000)

    upstream.most_bytes = None

    assert fetch.fetch("zsre", tmp_path)[0].path.read_bytes() == upstream.bodies["a.json"]


def test_a_page_in_place_of_the_file_is_refused(upstream, offered, tmp_path):
    upstream.bodies["a.json"] = b"<html>Please log in</html>"

    with pytest.raises(UserError, match="the server returned something that is not a zsre file"):
        fetch.fetch("zsre", tmp_path)

    assert names(tmp_path) == set()


def test_an_unreachable_server_is_reported_in_one_line(upstream, offered, tmp_path, monkeypatch):
    gone = Download("http://127.0.0.1:9/a.json", "a.json", "MIT")
    with_downloads((gone,), monkeypatch)

    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a\.json: .*refused"):
        fetch.fetch("zsre", tmp_path)


def test_a_full_disk_leaves_nothing_and_is_reported_in_one_line(offered, tmp_path, monkeypatch):
    real = Path.open

    def full(path, mode="r", *args, **kwargs):
        stream = real(path, mode, *args, **kwargs)
        if path.name.endswith(".part"):
            stream.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return stream

    monkeypatch.setattr(Path, "open", full)

    with pytest.raises(UserError, match="zsre: No space left on device"):
        fetch.fetch("zsre", tmp_path)

    assert names(tmp_path) == set()


def test_a_users_own_file_of_the_same_name_is_never_overwritten(offered, tmp_path):
    mine = tmp_path / "zsre" / "a.json"
    mine.parent.mkdir()
    mine.write_text("mine")

    with pytest.raises(UserError, match="already exists and was not downloaded by this command"):
        fetch.fetch("zsre", tmp_path)

    assert mine.read_text() == "mine"


def test_a_broken_list_of_checksums_is_reported(offered, tmp_path):
    (tmp_path / "zsre").mkdir()
    (tmp_path / "zsre" / "checksums.json").write_text("{")

    with pytest.raises(UserError, match=r"checksums\.json: not a mapping"):
        fetch.fetch("zsre", tmp_path)


def test_a_folder_that_cannot_be_created_is_reported(offered, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match="Not a directory"):
        fetch.fetch("zsre", tmp_path / "file")


def test_an_unknown_dataset_is_reported(tmp_path):
    with pytest.raises(UserError, match="unknown dataset 'zsrr' \\(did you mean 'zsre'"):
        fetch.fetch("zsrr", tmp_path)


PUBLISHED = {name: info for name, info in registry.datasets.all().items() if info.downloads}


@pytest.mark.parametrize("info", PUBLISHED.values(), ids=list(PUBLISHED))
def test_every_dataset_has_https_addresses_and_licences(info):
    assert all(download.url.startswith("https://") and download.licence for download in info.downloads)
    assert info.paper_template is None or info.paper_template.count("{Input}") == 1
