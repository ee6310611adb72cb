"""Downloads from a real server on this machine."""

import errno
import json
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
    """Serves `bodies`, announcing `missing_bytes` more than it sends."""

    bodies: dict[str, bytes]
    missing_bytes = 0

    def do_GET(self):
        body = self.bodies.get(self.path.strip("/"))
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + self.missing_bytes))
        self.end_headers()
        self.wfile.write(body)
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
    handler = type("Handler", (Upstream,), {"bodies": {}, "missing_bytes": 0})
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
    return {path.name for path in folder.rglob("*") if path.is_file()}


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


def test_a_missing_page_is_reported_in_one_line(upstream, offered, tmp_path):
    del upstream.bodies["b.json"]

    with pytest.raises(UserError, match=r"b\.json: the server returned 404 Not Found") as caught:
        fetch.fetch("zsre", tmp_path)

    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"a.json", "checksums.json"}


def test_a_truncated_download_leaves_nothing(upstream, offered, tmp_path):
    upstream.missing_bytes = 100
    size = len(upstream.bodies["a.json"])

    with pytest.raises(UserError, match=rf"cut off after {size} of {size + 100} bytes"):
        fetch.fetch("zsre", tmp_path)

    assert names(tmp_path) == set()


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


@pytest.mark.parametrize("info", registry.datasets.all().values(), ids=list(registry.datasets))
def test_every_dataset_has_https_addresses_and_licences(info):
    assert info.downloads
    assert all(download.url.startswith("https://") and download.licence for download in info.downloads)
    assert info.paper_template.count("{Input}") == 1
