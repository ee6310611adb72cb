"""How a job ended, and the record of a failure."""

from dataclasses import dataclass

from harness.files import write_json
from harness.plan.cell import Cell
from harness.plan.job import Job
from harness.store import provenance
from harness.store.store import Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        seconds: how long it took; None where only its end was seen.
        reason: why it has no result; None for one that is finished.
        remarks: what the edited model says about itself (see `EditedModel.remarks`).
    """

    seconds: float | None
    reason: str | None = None
    remarks: tuple[str, ...] = ()


def record_failure(store: Store, job: Job, reason: str, log: str = "") -> None:
    """Write the reason why a job failed in place of its result.

    Args:
        store: where its folder is.
        job: that has failed.
        reason: one line.
        log: what is known beyond that; by default only the reason.
    """
    with store.folder(job.place).failing(reason) as folder:
        write_json(folder / ("cell.json" if isinstance(job.work, Cell) else "artifact.json"), job.work.description())
        write_json(folder / "provenance.json", provenance.environment())
        (folder / "log.txt").write_text(log or reason, encoding="utf-8")
