"""Record ids that are unique across all files of a dataset, which upstream may number independently."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.data.schemas import content_id
from harness.records import EditRecord


def own_ids(records: Sequence[EditRecord], others: Iterable[EditRecord] = ()) -> tuple[EditRecord, ...]:
    """Give each record an id that no record with a different prompt has.

    An id that several prompts share gets a hash of the record's prompt and target appended (`7` becomes `7-1f2e3d4c`), so
    it does not depend on the order of records or files. All other ids are kept.

    Args:
        records: the records of a file.
        others: records of the same dataset whose ids are taken; may include `records`.
    """
    prompts: dict[str, str] = {}
    shared: set[str] = set()
    for record in (*others, *records):
        if prompts.setdefault(record.id, record.prompt) != record.prompt:
            shared.add(record.id)
    return tuple(_renamed(record) if record.id in shared else record for record in records)


def _renamed(record: EditRecord) -> EditRecord:
    return replace(record, id=f"{record.id}-{content_id(record.prompt, record.target_new)[:8]}")
