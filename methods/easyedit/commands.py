"""`harness easyedit`: fetch the checkout, and show its state, the adapters and their workarounds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.errors import UserError
from methods.easyedit import checkout
from methods.easyedit.workarounds import WORKAROUNDS

app = typer.Typer(help="Fetch EasyEdit's code, or show the present checkout.", no_args_is_help=True)
"""The commands; `harness` adds them under the backend's name."""

PARTS = ("easyeditor", "hparams")
"""EasyEdit's code and the hyper-parameter files that ours cite; the rest of the repository is images, notebooks and data."""


@app.command("fetch")
def fetch_command(
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="Repository, or the folder of a clone, to fetch from.")
    ] = checkout.REPOSITORY,
) -> None:
    """Fetch EasyEdit's code at the commit that the adapters were written for."""
    print(described(fetch(source)))


@app.command("show")
def show_command() -> None:
    """Show the checkout, missing modules, adapters and their workarounds."""
    for line in show():
        print(line)


def fetch(source: str = checkout.REPOSITORY) -> checkout.Checkout:
    """Clone the pinned commit, without history, to where `checkout.find` expects it, unless it is already there.

    git verifies everything that it receives by the commit's hash, and shows its progress on a terminal. If a clone was cut
    off once the commit itself had arrived, only the files that are still missing are fetched.

    Args:
        source: a URL, or the folder of a clone.

    Raises:
        UserError: if git fails, with its error message.
    """
    folder = checkout.fetched()
    if not (folder / "easyeditor").is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            if not _has_commit(partial):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                checkout.git(partial, "init", "--quiet")
                checkout.git(partial, "sparse-checkout", "set", *PARTS)
                checkout.git(partial, "remote", "add", "origin", source)
                _download(partial, "fetch", "--depth=1", "--filter=blob:none", "origin", checkout.COMMIT)
            for lock in (partial / ".git").glob("*.lock"):  # of a git that was killed
                lock.unlink()
            checkout.git(partial, "remote", "set-url", "origin", source)  # from where the checkout fetches files
            _download(partial, "checkout", "--force", checkout.COMMIT)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines() or ["git gave no reason"]
            raise UserError(
                f"cannot fetch {checkout.COMMIT[:12]} from {source}: {said[-1]}",
                fix=f"{checkout.FETCH} --from URL_OR_FOLDER",
            ) from None
        finally:
            if not _has_commit(partial):
                shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return checkout.at(folder)


def _has_commit(folder: Path) -> bool:
    """Whether a folder is a repository that already contains the pinned commit."""
    try:
        return (folder / ".git").is_dir() and bool(checkout.git(folder, "rev-parse", f"{checkout.COMMIT}^{{commit}}"))
    except subprocess.CalledProcessError:
        return False


def _download(folder: Path, command: str, *arguments: str) -> None:
    """Run a git command that downloads, with its progress on the terminal if there is one.

    Raises:
        subprocess.CalledProcessError: with git's error message as `stderr`.
    """
    progress = "--progress" if sys.stderr.isatty() else "--quiet"
    quiet = ["-c", f"safe.directory={folder}", "-c", "advice.detachedHead=false"]
    with subprocess.Popen(
        ["git", *quiet, "-C", str(folder), command, progress, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as running:
        assert running.stderr is not None
        said = b""
        while block := os.read(running.stderr.fileno(), 1 << 16):
            said += block
            if sys.stderr.isatty():
                sys.stderr.buffer.write(block)
                sys.stderr.flush()
    if running.returncode:
        message = said.decode(errors="replace")
        raise subprocess.CalledProcessError(running.returncode, command, stderr=message)


def described(found: checkout.Checkout) -> str:
    """Describe a checkout in one line."""
    changed = f", changed ({found.changes[:12]})" if found.changes else ", clean"
    return f"{found.folder} at {found.commit[:12]}{changed}"


def show() -> Iterator[str]:
    """One line each: the checkout, missing modules, adapters and their workarounds."""
    yield described(checkout.find())
    for name, what in checkout.EXTRAS.items():
        is_absent = name in checkout.absent([name])
        yield f"  {name:12s} {'missing' if is_absent else 'found':8s} for {what}"
    for name, method in registry.implementations("easyedit").all().items():
        own = getattr(method, "own_workarounds", ())
        yield f"{name:12s} version {method.spec.version}, workarounds: {', '.join(own)}"
    for name, what in WORKAROUNDS.items():
        yield f"  {name}: {what}"
