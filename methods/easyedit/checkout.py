"""The EasyEdit checkout: its location, commit, local changes and missing requirements. Does not import torch."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.commands import harness_command, same_command
from harness.errors import UserError
from harness.files import cache_folder

COMMIT = "14cea8245f06715684592ab55184939b99d70784"
"""Commit of zjunlp/EasyEdit, 2026-07-14. Results may differ at other commits; all cited files and lines refer to this one."""
REPOSITORY = "https://github.com/zjunlp/EasyEdit"
FETCH = "python -m harness easyedit fetch"
INSTALL = "python -m pip install 'editing-harness[easyedit]'"
EXTRAS = {
    "higher": "MEND",
    "peft": "LoRA",
    "sklearn": "its evaluation",
    "nltk": "its evaluation",
    "regex": "its evaluation",
}
"""Modules beyond this project's own requirements that EasyEdit imports, and what for; `INSTALL` installs them."""
DIFFERENCE = ("diff-index", "--patch", "--no-ext-diff", "--full-index")
"""Unlike `git diff`, its output does not depend on user settings or on the depth of the clone."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """EasyEdit's code at the pinned commit.

    Attributes:
        folder: the folder that contains `easyeditor`.
        commit: the commit that is checked out.
        changes: sha256 of the diff against that commit, independent of git settings; empty if there are no changes.
    """

    folder: Path
    commit: str
    changes: str

    @property
    def identity(self) -> dict[str, str]:
        """Identify this code, independent of its location."""
        return {"easyedit": self.commit, **({"changes": self.changes} if self.changes else {})}


def place() -> Path:
    """The folder where a checkout is expected: `EASYEDIT_HOME`, or else where `fetch` puts it."""
    home = os.environ.get("EASYEDIT_HOME", "")
    return Path(home).expanduser().absolute() if home else fetched()


def fetched() -> Path:
    """Where `harness easyedit fetch` puts the checkout; the folder name contains the commit."""
    return cache_folder() / f"easyedit-{COMMIT[:12]}"


def is_present() -> bool:
    """Whether a checkout exists, in any state."""
    return (place() / "easyeditor").is_dir()


def find() -> Checkout:
    """Find the checkout that will be used.

    It is inspected once per process, so that all cells of a run are planned, run and described with the same code;
    `confirmed` checks that it has not changed since.

    Raises:
        UserError: if there is no checkout, it is at a different commit, or it is not a git repository.
    """
    return at(place())


def at(folder: Path) -> Checkout:
    """Inspect the checkout in a folder.

    Raises:
        UserError: as for `find`.
    """
    found = _inspect(folder)
    if found.commit != COMMIT:
        is_what = f"is at commit {found.commit[:12]}" if found.commit else "is not a git checkout"
        ways = f"rm -r {folder} && {FETCH}" if folder == fetched() else f"git -C {folder} checkout {COMMIT}"
        raise UserError(f"EasyEdit at {folder} {is_what}, not at {COMMIT[:12]}", fix=ways)
    return found


def confirmed() -> Checkout:
    """Return the checkout after checking that it has not changed: otherwise cells would record the wrong code.

    Raises:
        UserError: if it was removed or changed.
    """
    found = find()
    try:
        is_same = _look(found.folder) == found
    except UserError:
        is_same = False
    if not is_same:
        raise UserError(
            f"EasyEdit at {found.folder} was changed or removed while this process was running",
            fix=f"{harness_command('easyedit', 'show')} shows what it is now; then: {same_command()}",
        )
    return found


def absent(extras: Sequence[str] = tuple(EXTRAS)) -> list[str]:
    """The given modules that are not installed in this environment."""
    return [name for name in extras if find_spec(name) is None]


def require(extras: Sequence[str]) -> None:
    """Check that modules are installed.

    Raises:
        UserError: naming those that are missing.
    """
    if lacking := absent(extras):
        raise UserError(f"EasyEdit needs {', '.join(lacking)} here", fix=INSTALL)


def git(folder: Path, *arguments: str) -> str:
    """Run a git command in a checkout, regardless of its owner, and return its output.

    Raises:
        subprocess.CalledProcessError: with git's error message as `stderr`.
        UserError: if git is not installed.
    """
    command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip()
    except FileNotFoundError:
        raise UserError(
            "git is needed to check EasyEdit's commit, but is not installed", fix="apt-get install git"
        ) from None


@cache
def _inspect(folder: Path) -> Checkout:
    """`_look`, cached per process and folder."""
    return _look(folder)


def _look(folder: Path) -> Checkout:
    """Inspect a folder with git; the commit is empty if the folder is not the root of a git repository.

    Raises:
        UserError: if the folder does not contain EasyEdit.
    """
    if not (folder / "easyeditor").is_dir():
        home = "set EASYEDIT_HOME to a checkout"
        ways = f"{FETCH}, or {home}" if folder == fetched() else f"{home}, or unset it and {FETCH}"
        raise UserError(f"no EasyEdit at {folder}", fix=ways)
    try:
        if Path(git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return Checkout(folder, "", "")
        commit = git(folder, "rev-parse", "HEAD")
        difference = git(folder, *DIFFERENCE, "HEAD", "--", "easyeditor")
    except subprocess.CalledProcessError:
        return Checkout(folder, "", "")
    return Checkout(folder, commit, hashlib.sha256(difference.encode()).hexdigest() if difference else "")
