"""Verdicts of language models on the answers of finished cells, and their replies, so that nothing is asked twice."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from harness.files import explained, locked, understood, write_bytes
from harness.store.answers import KEY
from harness.store.store import Folder, Store

if TYPE_CHECKING:
    import pandas as pd

FILE = "verdicts.parquet"
"""In the folder of a cell: the columns of `KEY` and of `COLUMNS`, one row per judge and answer."""

COLUMNS = ("judge", "judge_prompt", "judge_reply", "verdict")
"""The judge (`JudgeForm.title`), what it was asked, what it replied, and 1 for correct, 0 for incorrect, NaN for neither."""


def has_verdicts(store: Store, cells: Iterable[str]) -> bool:
    """Whether one of these cells has been judged."""
    return any((store.cell(name).path / FILE).is_file() for name in cells)


def read_verdicts(folder: Folder) -> "pd.DataFrame":
    """The verdicts on a cell's answers; without rows if none was judged.

    Raises:
        UserError: if the file is damaged.
    """
    import pandas as pd

    file = folder.path / FILE
    if not file.is_file():
        return pd.DataFrame(columns=[*KEY, *COLUMNS])
    with understood(file):
        return pd.read_parquet(file, columns=[*KEY, *COLUMNS])


def write_verdicts(folder: Folder, verdicts: "pd.DataFrame", judge: str) -> None:
    """Put the verdicts of one judge next to a cell's answers; they replace its earlier ones."""
    import pandas as pd

    earlier = read_verdicts(folder)
    others = earlier[earlier["judge"] != judge]
    together = pd.concat([others, verdicts], ignore_index=True) if len(others) else verdicts
    write_bytes(folder.path / FILE, together[[*KEY, *COLUMNS]].to_parquet(index=False))


def verdict_text(verdict: float) -> str | None:
    """`correct`, `incorrect`, or None."""
    return {1.0: "correct", 0.0: "incorrect"}.get(verdict)


class Replies:
    """Replies of all judges by the hash of judge and prompt, in a file to which lines of JSON are appended."""

    def __init__(self, known: dict[str, str], file: TextIO) -> None:
        self._known, self._file = known, file

    @property
    def known(self) -> Mapping[str, str]:
        """The known replies by hash."""
        return self._known

    def add(self, key: str, reply: str) -> None:
        """Append a reply; it is on disk when this returns."""
        self._known[key] = reply
        self._file.write(json.dumps({"key": key, "reply": reply}, ensure_ascii=False) + "\n")
        self._file.flush()


@contextmanager
def kept_replies(store: Store) -> Iterator[Replies]:
    """The replies in a store, to read and append to.

    Raises:
        UserError: if another process is adding to them, or the store cannot be written.
    """
    folder = store.root / "judge"
    with explained(folder):
        folder.mkdir(exist_ok=True)
        refusal = f"{store.root}: another command is judging answers in this store"
        with locked(folder / ".lock", refusal, fix="wait for it to end, and run this command again"):
            file = folder / "replies.jsonl"
            known = _read(file)
            with file.open("a", encoding="utf-8") as lines:
                lines.write("\n" * _is_cut_off(file))
                yield Replies(known, lines)


def _read(file: Path) -> dict[str, str]:
    """All replies; a line that a killed process has not finished is left out."""
    known: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                known[found["key"]] = found["reply"]
            except (ValueError, KeyError, TypeError):
                continue
    return known


def _is_cut_off(file: Path) -> bool:
    content = file.read_bytes()[-1:]
    return bool(content) and content != b"\n"
