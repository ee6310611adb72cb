"""The verb `data`: list, show and fetch records."""

import os
from pathlib import Path

from rich.console import Console

from harness import registry
from harness.data.fetch import fetch
from harness.data.show import describe, show
from harness.data.sources import SYNTHETIC
from harness.errors import UserError


def run(action: str, name: str | None, source: str | None, record_id: str | None, to: Path, console: Console) -> int:
    """Do one of the verb's actions.

    Args:
        action: `list`, `show` or `fetch`.
        name: data set; `list` and `fetch` take all where there is none.
        source: folder of upstream files; without one that of HARNESS_DATA, else the built-in world.
        record_id: record that `show` prints; without one the first.
        to: folder that `fetch` writes to.
        console: where it is printed.

    Returns:
        The exit code.

    Raises:
        UserError: where nothing can be listed, shown or fetched.
    """
    source = source or os.environ.get("HARNESS_DATA") or SYNTHETIC
    if action == "fetch":
        for each in [name] if name else list(registry.datasets):
            for fetched in fetch(each, to):
                _say(console, str(fetched))
        _say(console, f"use them: python -m harness data list --data {to}")
    elif action == "show":
        if name is None:
            raise UserError(
                "data show: of which data set?", fix=f"python -m harness data show {next(iter(registry.datasets))}"
            )
        _say(console, show(name, source, record_id))
    else:
        _say(console, _listing(source, name))
    return 0


def _listing(source: str, name: str | None) -> str:
    """One line per file; of its records those are usable that are sound and ask something new."""
    titles = ("data set", "used for", "records", "usable", "test", "dev", "format", "file")
    lines = [titles] + [
        (
            row.dataset,
            row.role,
            f"{row.rows:,}",
            f"{row.usable:,}",
            f"{row.test:,}",
            f"{row.dev:,}",
            row.format,
            row.path,
        )
        for row in describe(source, name)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    are_numbers = [title in ("records", "usable", "test", "dev") for title in titles]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, are_numbers, strict=True)
        ).rstrip()
        for line in lines
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
