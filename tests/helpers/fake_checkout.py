"""A git repository that looks like EasyEdit's from outside, for tests of everything that does not call its code."""

import subprocess
from pathlib import Path

from methods.easyedit import checkout


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_checkout(folder: Path) -> Path:
    """One commit with the folders that are fetched and one that is not."""
    for name in ("easyeditor/util.py", "hparams/FT.yaml", "figs/large.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"# {name}\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def pinned(folder: Path, monkeypatch) -> Path:
    """Make its commit the one that is asked for, and it the checkout that is found."""
    monkeypatch.setattr(checkout, "COMMIT", git(folder, "rev-parse", "HEAD"))
    monkeypatch.setenv("EASYEDIT_HOME", str(folder))
    checkout._inspect.cache_clear()
    return folder
