"""`harness easyedit`: fetch the checkout, and show its state, the adapters and their workarounds."""

import shutil
import subprocess
from collections.abc import Iterator
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

    Args:
        source: a URL, or the folder of a clone.

    Raises:
        UserError: if git fails, with its error message.
    """
    folder = checkout.fetched()
    if not (folder / "easyeditor").is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            checkout.git(partial, "init", "--quiet")
            checkout.git(partial, "sparse-checkout", "set", *PARTS)
            checkout.git(partial, "remote", "add", "origin", source)
            checkout.git(partial, "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", checkout.COMMIT)
            checkout.git(partial, "checkout", "--quiet", checkout.COMMIT)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines() or ["git gave no reason"]
            raise UserError(
                f"cannot fetch {checkout.COMMIT[:12]} from {source}: {said[-1]}",
                fix=f"{checkout.FETCH} --from URL_OR_FOLDER",
            ) from None
        finally:
            if not (partial / "easyeditor").is_dir():
                shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return checkout.at(folder)


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
