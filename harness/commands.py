"""Command lines of this program, as suggestions name them: complete, quoted, ready to be pasted."""

import os
import shlex
from pathlib import Path

PLUGINS = "HARNESS_PLUGINS"
"""Environment variable: plug-in modules or files, separated by colons. Worker processes and cluster jobs inherit it."""


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
