"""Download upstream files atomically and verify their checksums.

If upstream publishes no checksum, the first download records one in `checksums.json` next to the files, and every later
download must match it.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from harness import registry
from harness.data.catalogue import Download
from harness.data.formats import Foreign, recognise
from harness.data.reading import CHECKSUMS
from harness.errors import UserError
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


def fetch(name: str, folder: Path) -> list[Fetched]:
    """Download a dataset's upstream files to `folder/name`.

    A file that exists and matches its checksum is kept; a file that does not match is downloaded again. Each download is
    written under a temporary name and renamed only once it is complete, verified and in one of the dataset's formats.

    Raises:
        UserError: for an unknown dataset or one without downloads, an unreachable server, an incomplete or wrong file, a
            full disk, or an existing file of the same name that this command did not download. No partial file is left.
    """
    info = registry.datasets.get(name)
    if not info.downloads:
        raise UserError(f"dataset '{name}' has no files to download", fix=info.remedy)
    place = folder / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        return [_bring(download, place, name) for download in info.downloads]
    except OSError as error:
        raise UserError(f"{place}: {_reason(error)}", fix=f"python -m harness data fetch {name}") from error


def _bring(download: Download, place: Path, name: str) -> Fetched:
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
    partial = place / f".{download.filename}.{os.getpid()}.part"
    try:
        found = _stream(download.url, partial)
        if known not in (None, found):
            raise UserError(
                f"{download.url}: sha256 is {found[:12]}, not {str(known)[:12]} as "
                + ("published" if download.sha256 else f"recorded in {place / CHECKSUMS} by the first download"),
                fix=f"python -m harness data fetch {name}" if download.sha256 else f"rm {place / CHECKSUMS}",
            )
        form = recognise(partial)
        if isinstance(form, Foreign) or form.dataset != name:
            raise UserError(
                f"{download.url}: the server returned something that is not a {name} file",
                fix=f"python -m harness data fetch {name}",
            )
        if known is None:
            _write(place / CHECKSUMS, json.dumps({**recorded, download.filename: found}, indent=2, sort_keys=True))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Fetched(path, found, is_new=True, is_first=known is None)


def _stream(url: str, partial: Path) -> str:
    """Download to a file and return its sha256."""
    request = urllib.request.Request(url, headers={"User-Agent": "editing-harness"})
    sha256, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, partial.open("wb") as out:
            promised = response.headers.get("Content-Length")
            while block := response.read(_BLOCK_BYTES):
                sha256.update(block)
                received += len(block)
                out.write(block)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server returned {error.code} {error.reason}", fix=f"curl -I {url}") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: {error.reason}", fix=f"curl -I {url}") from error
    except http.client.HTTPException as error:
        raise UserError(f"{url}: the download was cut off ({type(error).__name__})", fix=f"curl -I {url}") from error
    if promised is not None and received != int(promised):
        raise UserError(f"{url}: the download was cut off after {received} of {promised} bytes", fix=f"curl -I {url}")
    return sha256.hexdigest()


def _recorded(place: Path) -> dict[str, str]:
    path = place / CHECKSUMS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a mapping of file names to checksums", fix=f"rm {path}")
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text + "\n")
    partial.replace(path)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
