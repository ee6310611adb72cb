"""Command lines of this program for use in messages: complete, quoted, ready to be pasted."""

import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

PLUGINS = "HARNESS_PLUGINS"
"""Environment variable: plug-in modules or files, separated by colons. Worker processes and cluster jobs inherit it."""
COMMAND = "HARNESS_COMMAND"
"""Environment variable: the command that launched this process elsewhere. A launcher's own entry point sets it."""


def plugin_names() -> list[str]:
    """Plug-ins named in the environment, in order."""
    return [name for name in os.environ.get(PLUGINS, "").split(":") if name]


def harness_command(*words: object, store: Path | None = None, **options: object) -> str:
    """`python -m harness` with these words and options, and the plug-ins that are loaded now.

    Args:
        words: command and arguments; a word that contains spaces is quoted.
        store: results folder, if the command reads or writes one.
        options: further options; one that is None, False or empty is left out, one that is True takes no value, and one
            with several values is repeated.
    """
    parts = ["python", "-m", "harness", *map(str, words)]
    for name, given in {**options, "store": store}.items():
        for value in given if isinstance(given, list | tuple) else [given]:
            if value not in (None, False, ""):
                parts += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    for plugin in plugin_names():
        parts += ["--plugin", plugin]
    return shlex.join(parts)


def this_command() -> str:
    """The command line that reproduces this process; in a process started by a launcher, the launcher's.

    Addresses in it show no user name and password.
    """
    if launched_by := os.environ.get(COMMAND):
        return without_credentials(launched_by)
    program, module = Path(sys.argv[0]), sys.modules["__main__"].__spec__
    if module is not None:
        start = ["python", "-m", module.name.removesuffix(".__main__")]
    elif program.name == "__main__.py":  # spawned: the parent's arguments, but another main module
        start = ["python", "-m", program.parent.name]
    else:
        start = [program.name]
    return without_credentials(shlex.join([*start, *sys.argv[1:]]))


def same_command(**changed: object) -> str:
    """This command line with different values of some options; those that are None are left out."""
    words, kept = shlex.split(this_command()), list[str]()
    names = [f"--{name.replace('_', '-')}" for name in changed]
    for before, word in zip(["", *words], words, strict=False):
        if before not in names and word not in names and not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    new = [(name, str(value)) for name, value in zip(names, changed.values(), strict=True) if value is not None]
    return shlex.join([*kept, *(part for option in new for part in option)])


def same_command_with(word: str, other: str) -> str:
    """This command line with another argument in place of one."""
    return shlex.join(other if each == word else each for each in shlex.split(this_command()))


def rerun(path: Path) -> str:
    """Command that removes a damaged file or folder of a store and runs its suite again."""
    found = _run_of(path)
    return f"rm -r {shlex.quote(str(path))}{f' && {found}' if found else ', then run its suite again'}"


def run_of(path: Path) -> str:
    """Command that runs the suite of a file or folder of a store again, with what has changed since."""
    return _run_of(path) or "run its suite again"


def _run_of(path: Path) -> str | None:
    for manifest in (file for folder in path.parents for file in sorted((folder / "suites").glob("*.json"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            run = json.loads(manifest.read_text(encoding="utf-8"))
            if not set(run["cells"]).isdisjoint(path.parts):
                return str(run.get("again", run["command"]))
    return None


def with_another_store(store: Path) -> str:
    """This command line with a results folder that can be written, in place of one that cannot."""
    home = Path("~/harness-results").expanduser()
    places = [Path("results"), home, Path(tempfile.gettempdir(), "harness-results")]
    found = (place for place in places if place.resolve() != store.resolve() and _is_writable(place))
    return same_command(store=next(found, home))


def nearest_existing(path: Path) -> Path:
    """The path itself, or the deepest of its parents that exists.

    Raises:
        OSError: for a path that cannot exist, such as one that is too long.
    """
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def list_around(path: Path) -> str | None:
    """Command that lists the folder where a missing file or folder should be, or the deepest of its parents that exists.

    None where that says nothing: for the working directory and the root.
    """
    place = next((place for place in path.parents if place.exists()), Path())
    return None if place in (Path(), Path(place.anchor)) else f"ls {shlex.quote(str(place))}"


def _is_writable(folder: Path) -> bool:
    """Whether it is a folder, or can become one, in which files can be made."""
    there = nearest_existing(folder)
    return there.is_dir() and os.access(there, os.W_OK)


def without_credentials(text: str) -> str:
    """A text without the user names and passwords in its addresses: `http://user:secret@host` becomes `http://***@host`."""
    return re.sub(r"(?<=://)[^/\s'\"]+@", "***@", text)
