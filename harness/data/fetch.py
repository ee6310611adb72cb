"""Download upstream files atomically and verify their checksums.

If upstream publishes no checksum, the first download records one in `checksums.json` next to the files, and every later
download must match it.
"""

import http
import http.client
import json
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from harness import registry
from harness.commands import harness_command
from harness.data.catalogue import Download
from harness.data.formats import Foreign, recognise
from harness.data.reading import CHECKSUMS
from harness.errors import UserError
from harness.files import locked
from harness.identity import file_digest

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Fetched:
    """Result of fetching one file.

    Attributes:
        path: local path.
        sha256: checksum of the contents.
        is_new: False if a verified copy already existed.
        is_first: True if there was no checksum to verify against, so that this download recorded one.
    """

    path: Path
    sha256: str
    is_new: bool
    is_first: bool

    def __str__(self) -> str:
        state = "downloaded" if self.is_new else "already exists"
        checked = "first download, checksum recorded in " + CHECKSUMS if self.is_first else "verified"
        return f"{self.path}: {state}, {checked} (sha256 {self.sha256[:12]})"


Report = Callable[[str, int, int | None], None]
"""Progress callback of a download: file name, bytes received, and total bytes if the server gives them."""


def fetch(name: str, folder: Path, report: Report = lambda file, received, total: None) -> list[Fetched]:
    """Download a dataset's upstream files to `folder/name`.

    A file that exists and matches its checksum is kept; a file that does not match is downloaded again. Each download is
    written under a temporary name and renamed only once it is complete, verified and in one of the dataset's formats. A
    download that was cut off is continued by the next call, if the file on the server is still the same.

    Args:
        name: the dataset.
        folder: where its folder is, or will be.
        report: called after each block.

    Raises:
        UserError: for an unknown dataset or one without downloads, an unreachable server, an incomplete or wrong file, a
            full disk, another download to the same folder, or an existing file of the same name that this command did not
            download.
    """
    info = registry.datasets.get(name)
    if not info.downloads:
        raise UserError(f"dataset '{name}' has no files to download", fix=info.remedy())
    place = folder / name
    again = harness_command("data", "fetch", name, to=folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / ".fetch.lock", f"{place}: another download is writing there", fix="wait for it to end"):
            return [_bring(download, place, name, again, report) for download in info.downloads]
    except OSError as error:
        raise UserError(f"{place}: {_reason(error)}", fix=again) from error


def _bring(download: Download, place: Path, name: str, again: str, report: Report) -> Fetched:
    path = place / download.filename
    recorded = _recorded(place)
    known = download.sha256 or recorded.get(download.filename)
    if path.exists():
        if known is None:
            raise UserError(
                f"{path}: already exists and was not downloaded by this command", fix=f"mv {path} {path}.mine"
            )
        if file_digest(path) == known:
            return Fetched(path, known, is_new=False, is_first=False)
    partial = _Partial(place / f".{download.filename}.part")
    try:
        _stream(download, partial, again, report)
    except OSError:  # such as a full disk, of which the partial file would keep a part
        partial.remove()
        raise
    try:
        found = file_digest(partial.path)
        if known not in (None, found):
            raise UserError(
                f"{download.url}: sha256 is {found[:12]}, not {str(known)[:12]} as "
                + ("published" if download.sha256 else f"recorded in {place / CHECKSUMS} by the first download"),
                fix=again if download.sha256 else f"{_forget(path)} && {again}",
            )
        form = recognise(partial.path)
        if isinstance(form, Foreign) or form.dataset != name:
            raise UserError(f"{download.url}: the server returned something that is not a {name} file", fix=again)
        if known is None:
            _write(place / CHECKSUMS, json.dumps({**recorded, download.filename: found}, indent=2, sort_keys=True))
        partial.path.replace(path)
    finally:
        partial.remove()
    return Fetched(path, found, is_new=True, is_first=known is None)


@dataclass(frozen=True, slots=True)
class _Partial:
    """An unfinished download, with what the server called this version of the file next to it."""

    path: Path

    @property
    def _version(self) -> Path:
        return self.path.with_suffix(".version")

    def headers(self) -> dict[str, str]:
        """Ask for the rest, or for the whole file if it is no longer the same; nothing if there is nothing to continue."""
        if not (self.path.is_file() and self._version.is_file()):
            return {}
        return {"Range": f"bytes={self.path.stat().st_size}-", "If-Range": self._version.read_text(encoding="utf-8")}

    def begin(self, answer: Message) -> int:
        """Remember the version of an answer with the whole file, or find where an answer with the rest continues.

        Returns:
            Number of bytes that are there already.
        """
        if "Content-Range" in answer:
            return self.path.stat().st_size
        self.remove()
        version = answer.get("ETag", "") or answer.get("Last-Modified", "")
        if version and not version.startswith("W/"):
            self._version.write_text(version, encoding="utf-8")
        return 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


def _stream(download: Download, partial: _Partial, again: str, report: Report) -> None:
    """Download the rest of a file.

    Raises:
        UserError: if the server refuses, or the download is cut off; what has arrived is kept.
    """
    url, total = download.url, None
    request = urllib.request.Request(url, headers={"User-Agent": "editing-harness", **partial.headers()})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            received = partial.begin(response.headers)
            promised = response.headers.get("Content-Length")
            total = received + int(promised) if promised is not None else None
            with partial.path.open("ab") as out:
                while block := response.read(_BLOCK_BYTES):
                    out.write(block)
                    received += len(block)
                    report(download.filename, received, total)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.remove()
            _stream(download, partial, again, report)
            return
        raise UserError(f"{url}: the server returned {error.code} {error.reason}", fix=f"curl -I {url}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: {error.reason}", fix=f"curl -I {url}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(f"{url}: the download was cut off ({type(error).__name__})", fix=again) from error
    if total is not None and received != total:
        raise UserError(f"{url}: the download was cut off after {received:,} of {total:,} bytes", fix=again)


def _forget(path: Path) -> str:
    """Command that removes a file and its recorded checksum, but not those of other files."""
    entry = f'"{path.name}": '
    script = f's/{entry}"[^"]*"/{entry}null/'
    return (
        f"sed -i {shlex.quote(script)} {shlex.quote(str(path.with_name(CHECKSUMS)))} && rm -f {shlex.quote(str(path))}"
    )


def _recorded(place: Path) -> dict[str, str | None]:
    """Checksums by file name, None for one that may change."""
    path = place / CHECKSUMS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a mapping of file names to checksums", fix=f"rm {path}")
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
