"""Facts given by a program, as records in a folder that a suite can name."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from harness.data.facts import Fact, as_fact
from harness.data.load import load, resolve
from harness.data.sources import find_files
from harness.errors import UserError, did_you_mean
from harness.files import write_bytes
from harness.identity import digest
from harness.records import EditRecord
from harness.yaml_source import complaint

Facts: TypeAlias = Iterable[EditRecord | Mapping[str, Any]]
"""Records, or mappings with the keys of `harness.data.facts.Fact`."""

EDITS, UNRELATED = "facts.json", "unrelated.json"
MOST = 1000
"""Maximum number of unrelated records that methods may learn from."""

_FACT = TypeAdapter(Fact)


def as_records(facts: Facts) -> tuple[EditRecord, ...]:
    """Check facts and convert them to records.

    Raises:
        UserError: names the first fact that is none, or says that there is none at all.
    """
    if isinstance(facts, str | Mapping):
        raise UserError("facts: expected a list of facts", fix='[{"prompt": …, "subject": …, "target_new": …}]')
    found = tuple(_record(fact, number) for number, fact in enumerate(facts, 1))
    if not found:
        raise UserError("facts: the list is empty", fix='[{"prompt": …, "subject": …, "target_new": …}]')
    return found


def load_records(dataset: str, edits: int, *, data: str = "synthetic", split: str = "test") -> tuple[EditRecord, ...]:
    """The first records of a dataset, to edit or to evaluate.

    Args:
        dataset: name, as in a suite.
        edits: how many.
        data: folder of upstream files, or `synthetic`.
        split: `test`, `dev` or `all`.

    Raises:
        UserError: as `harness.data.load.resolve`.
    """
    return load(resolve(dataset, data, edits, split)).edits


def write_facts(facts: Sequence[EditRecord], unrelated: Sequence[EditRecord], root: Path) -> Path:
    """Write records, and further records that methods may learn from, to a folder named after their content.

    Returns:
        The folder below `root`.
    """
    content = {name: [as_fact(record) for record in group] for name, group in ((EDITS, facts), (UNRELATED, unrelated))}
    folder = root / digest(content, 16)
    for name, rows in content.items():
        if rows and not (folder / name).is_file():
            write_bytes(folder / name, json.dumps(rows, ensure_ascii=False, indent=1).encode())
    return folder


def unrelated_to(facts: Sequence[EditRecord], dataset: str, data: str) -> list[EditRecord]:
    """Records of a dataset about other subjects and prompts.

    Raises:
        UserError: as `harness.data.sources.find_files`.
    """
    subjects, prompts = {fact.subject for fact in facts if fact.subject}, {fact.prompt for fact in facts}
    found = find_files(dataset, data).edited.records
    return [record for record in found if record.subject not in subjects and record.prompt not in prompts][:MOST]


def _record(fact: EditRecord | Mapping[str, Any], number: int) -> EditRecord:
    if isinstance(fact, EditRecord):
        return fact
    known = set(Fact.__dataclass_fields__)
    if unknown := next((key for key in fact if key not in known), None):
        raise UserError(
            f"fact {number}: unknown key '{unknown}'{did_you_mean(unknown, known)}", fix=", ".join(sorted(known))
        )
    try:
        return _FACT.validate_json(json.dumps(dict(fact), default=str)).record()  # as from a file
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"fact {number}: {where}: {complaint(first)}", fix='{"prompt": …, "target_new": …}') from None
