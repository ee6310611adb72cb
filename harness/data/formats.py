"""The upstream formats by name, and how a file's format is recognised.

A format is recognised by the field names in the head of a file, never by the file's name, so that a broken record is
still known for what it should have been and reported with its number.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness.data import schemas

_HEAD_BYTES = 1 << 16
_KEY = re.compile(rb'"([^"\\]{1,40})"\s*:')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Format:
    """An upstream format.

    Attributes:
        name: as in the catalogue.
        dataset: the data set whose records it holds.
        title: as in messages and listings.
        rows: validates a whole file's records.
        is_of: whether field names in the head of a file are this format's; None for a table, which has none.
        tolerates_flaws: official files of the format hold a few records without a usable target; they are left out.
    """

    name: str
    dataset: str
    title: str
    rows: TypeAdapter[Any]
    is_of: Callable[[set[str]], bool] | None
    tolerates_flaws: bool = False


_TABLE = Format(
    "mend-tsv", "zsre", "ZsRE (MEND, table)", TypeAdapter(list[schemas.MendRow]), None, tolerates_flaws=True
)

FORMATS = {
    form.name: form
    for form in (
        Format(
            "counterfact",
            "counterfact",
            "CounterFact (ROME)",
            TypeAdapter(list[schemas.CounterFact]),
            lambda keys: "requested_rewrite" in keys and bool(keys & {"paraphrase_prompts", "neighborhood_prompts"}),
        ),
        Format(
            "counterfact-flat",
            "counterfact",
            "CounterFact (EasyEdit, flat)",
            TypeAdapter(list[schemas.CounterFactFlat]),
            lambda keys: bool(keys & {"locality_prompt", "locality_ground_truth"}),
        ),
        Format(
            "knowedit",
            "zsre",
            "ZsRE (KnowEdit)",
            TypeAdapter(list[schemas.KnowEdit]),
            lambda keys: "rephrase_prompt" in keys and bool(keys & {"locality", "portability"}),
        ),
        Format(
            "mend",
            "zsre",
            "ZsRE (MEND)",
            TypeAdapter(list[schemas.Mend]),
            lambda keys: len(keys & {"src", "alt", "rephrase", "loc", "loc_ans", "pred"}) >= 3,
            tolerates_flaws=True,
        ),
        _TABLE,
    )
}


def recognise(path: Path) -> Format | None:
    """The format of a file by its first 64 KiB, or None for a file that holds no editing data known here."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK)
    if head.lstrip()[:1] in (b"[", b"{"):
        keys = {key.decode(errors="replace") for key in _KEY.findall(head)}
        return next((form for form in FORMATS.values() if form.is_of and form.is_of(keys)), None)
    return _TABLE if _is_question_table(head) else None


def contents(path: Path) -> bytes:
    """A file's bytes without a byte-order mark."""
    return path.read_bytes().removeprefix(_BYTE_ORDER_MARK)


def _is_question_table(head: bytes) -> bool:
    """Most lines are a question, a tab, an answer."""
    lines = head.decode(errors="replace").split("\n")[: -1 if b"\n" in head else None]
    questions = sum(line.split("\t")[0].rstrip().endswith("?") and "\t" in line for line in lines)
    return questions > 0 and questions >= 0.8 * len(lines)
