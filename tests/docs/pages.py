"""The examples of the documentation: code blocks of a page, written to the files that the page names."""

import re
from pathlib import Path

from tests.helpers.commands import ROOT

DOCS = ROOT / "docs"
_FILE = re.compile(r"^`([\w/.-]+)`:$", re.MULTILINE)
_BLOCK = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """Content by name of each file that a page shows: a line with the name and a colon, then a code block."""
    text = (DOCS / page).read_text()
    found = {}
    for name in _FILE.finditer(text):
        block = _BLOCK.search(text, name.end())
        assert block, f"{page}: no code block after {name.group(0)}"
        assert not text[name.end() : block.start()].strip(), f"{page}: text between {name.group(0)} and its code block"
        found[name.group(1)] = block.group(1)
    return found


def write(page: str, folder: Path) -> Path:
    """Write the files of a page below a folder, as a reader would."""
    for name, content in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
