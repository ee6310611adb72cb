"""A checkout of EasyEdit: where it lies, whether it is the commit that the adapters were written for, what it lacks. No torch."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.errors import UserError

COMMIT = "14cea8245f06715684592ab55184939b99d70784"
"""Of zjunlp/EasyEdit, 2026-07-14. Another one makes other results; every file and line that is cited is of this one."""
REPOSITORY = "https://github.com/zjunlp/EasyEdit"
FETCH = "python -m harness easyedit fetch"
INSTALL = "python -m pip install 'editing-harness[easyedit]'"
EXTRAS = {
    "higher": "MEND",
    "sklearn": "its evaluation",
    "nltk": "its evaluation",
    "regex": "its evaluation",
}
"""Modules beyond this project's own needs that EasyEdit imports, with what for; `INSTALL` brings them."""
DIFFERENCE = ("diff-index", "--patch", "--no-ext-diff", "--full-index")
"""Unlike `git diff`, it says the same whatever a user's settings are and however deep the clone is."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """EasyEdit's code at the pinned commit.

    Attributes:
        folder: the one that holds `easyeditor`.
        commit: what is checked out.
        changes: sha256 of the difference to that commit, whatever the user's settings of git; empty if there is none.
    """

    folder: Path
    commit: str
    changes: str

    @property
    def identity(self) -> dict[str, str]:
        """What tells this code from any other, wherever it lies."""
        return {"easyedit": self.commit, **({"changes": self.changes} if self.changes else {})}


def place() -> Path:
    """The folder where a checkout is looked for: `EASYEDIT_HOME`, else where `fetch` puts one."""
    home = os.environ.get("EASYEDIT_HOME", "")
    return Path(home).expanduser().absolute() if home else fetched()


def fetched() -> Path:
    """Where `harness easyedit fetch` puts the checkout; its name says of which commit."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return Path(cache_home).expanduser().absolute() / "editing-harness" / f"easyedit-{COMMIT[:12]}"


def is_present() -> bool:
    """Whether there is one, in whatever state."""
    return (place() / "easyeditor").is_dir()


def find() -> Checkout:
    """The checkout that will be used.

    It is looked at once per process, so that all cells of a run are planned, run and described with the same one; `confirmed`
    says whether it still is.

    Raises:
        UserError: if there is none, or one of another commit, or one that git knows nothing of.
    """
    return at(place())


def at(folder: Path) -> Checkout:
    """The checkout in a folder.

    Raises:
        UserError: as `find`.
    """
    found = _inspect(folder)
    if found.commit != COMMIT:
        is_what = f"is at commit {found.commit[:12]}" if found.commit else "is no git checkout"
        ways = f"rm -r {folder} && {FETCH}" if folder == fetched() else f"git -C {folder} checkout {COMMIT}"
        raise UserError(f"EasyEdit at {folder} {is_what}, not at {COMMIT[:12]}", fix=ways)
    return found


def confirmed() -> Checkout:
    """The checkout that was found, looked at again: another one would make cells that name this one as their code.

    Raises:
        UserError: if it is gone or was changed.
    """
    found = find()
    try:
        is_same = _look(found.folder) == found
    except UserError:
        is_same = False
    if not is_same:
        raise UserError(
            f"EasyEdit at {found.folder} is not what this process began with: changed or gone",
            fix="python -m harness easyedit show, then run the suite again",
        )
    return found


def absent(extras: Sequence[str] = tuple(EXTRAS)) -> list[str]:
    """Those of some modules that this environment lacks."""
    return [name for name in extras if find_spec(name) is None]


def require(extras: Sequence[str]) -> None:
    """Check that modules are there.

    Raises:
        UserError: naming those that are not.
    """
    if lacking := absent(extras):
        raise UserError(f"EasyEdit needs {', '.join(lacking)} here", fix=INSTALL)


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command in a checkout, whoever owns it.

    Raises:
        subprocess.CalledProcessError: with git's complaint as `stderr`.
        UserError: if there is no git.
    """
    command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        raise UserError("no git on the path, and EasyEdit's commit is asked of it", fix="apt-get install git") from None


@cache
def _inspect(folder: Path) -> Checkout:
    """`_look`, once per process and folder."""
    return _look(folder)


def _look(folder: Path) -> Checkout:
    """A folder as git sees it; no commit where it does not, also where it only sees a repository around it.

    Raises:
        UserError: if EasyEdit is not in it.
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
