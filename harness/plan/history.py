"""Times of finished cells of a store: the best estimate for the next ones."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.identity import digest
from harness.models.catalogue import ModelRef
from harness.plan.cell import Cell, stem
from harness.store.provenance import processor
from harness.store.store import Store
from harness.suite.schedule import Schedule

READ = 5
"""Maximum number of finished cells that are read for an estimate; more would hardly change the median."""
_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished cell whose times can be quoted.

    Attributes:
        edits, protocols: their numbers.
        points: numbers of edits after which it was scored.
        seconds: from the loading of the model to the last answer, without artifacts and benchmark tasks.
        evaluate_s: of these, for the answers.
        device_class: what it ran on (see `harness.run.cost.device_class`).
        ended: ISO time.
    """

    edits: int
    protocols: int
    points: tuple[int, ...]
    seconds: float
    evaluate_s: float
    device_class: str
    ended: str


class History:
    """The finished cells of a store that ran on one class of device.

    Args:
        store: where they are.
        device: `cpu` or `cuda`.
        threads: CPU threads of the cells to come; None if not determined.
        is_here: whether these run on this machine, so that only cells of the same processor or GPU count. Otherwise the
            latest decide which class of device does.
    """

    def __init__(self, store: Store, device: str, threads: int | None = None, *, is_here: bool = True) -> None:
        self._store, self._device, self._threads = store, device, threads
        self._class = _class_here(device) if is_here else ""
        self._by_method: dict[tuple[str, str, ModelRef, bool], list[Finished]] = {}
        self._by_model: dict[ModelRef, list[Finished]] = {}

    def of(self, cell: Cell) -> list[Finished]:
        """Cells of the same method, with the same hyper-parameters, on the same model, whatever their records.

        Args:
            cell: of one plan, in which a label stands for one set of hyper-parameters on a model.
        """
        key = (cell.label, cell.backend, cell.model, cell.schedule.is_sequential)
        if key not in self._by_method:
            identity = {
                "name": cell.method.name,
                "version": cell.method.version,
                "backend": cell.backend,
                "hparams": cell.planned_method.hparams.identity(),
            }
            begin = stem(cell.label, cell.model.name, "")
            names = self._names[bisect_left(self._names, begin) : bisect_left(self._names, f"{begin}\U0010ffff")]
            found = (
                finished
                for kept, finished in self._finished(names, cell.model)
                if digest({name: kept["method"].get(name) for name in identity}) == digest(identity)
                and (kept["schedule"]["kind"] == "sequential") == cell.schedule.is_sequential
            )
            self._by_method[key] = _of_one_class(found)
        return self._by_method[key]

    def of_model(self, model: ModelRef) -> list[Finished]:
        """Cells of any method on a model."""
        if model not in self._by_model:
            part = stem("", model.name, "")
            names = [name for name in self._names if part in name]
            self._by_model[model] = _of_one_class(finished for _, finished in self._finished(names, model))
        return self._by_model[model]

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._store.cells())

    def _finished(self, names: Iterable[str], model: ModelRef) -> Iterator[tuple[dict[str, Any], Finished]]:
        """Finished cells on a model and kind of device, with their descriptions."""
        for name in names:
            folder = self._store.cell(name)
            try:
                kept, cost, origin = (folder.read(f"{part}.json") for part in ("cell", "cost", "provenance"))
                identity = {key: kept["model"].get(key) for key in model.identity()}
                if not folder.is_done or digest(identity) != digest(model.identity()):
                    continue
                if not (cost["citable"] and self._is_comparable(cost)):
                    continue
                began, ended = (datetime.fromisoformat(origin[time]) for time in ("started", "finished"))
                schedule = kept["schedule"]
                points = Schedule(schedule["kind"], schedule.get("block", 0), tuple(schedule.get("score_at", ())))
                yield (
                    kept,
                    Finished(
                        edits=cost["edits"],
                        protocols=len(kept["protocols"]),
                        points=points.points(cost["edits"]),
                        seconds=(ended - began).total_seconds()
                        - (cost["capability_s"] if kept.get("capability") else 0.0),
                        evaluate_s=cost["phases_s"]["evaluate"],
                        device_class=cost["device_class"],
                        ended=origin["finished"],
                    ),
                )
            except (OSError, ValueError, KeyError):
                continue  # half a cell, or one of an older version

    def _is_comparable(self, cost: dict[str, Any]) -> bool:
        return (
            cost["device"].partition(":")[0] == self._device
            and cost["device_class"].startswith(self._class)
            and (self._device != "cpu" or self._threads in (None, cost["threads"]))
        )


def _of_one_class(found: Iterable[Finished]) -> list[Finished]:
    """The latest ones, all on the class of device of the very latest."""
    ordered = sorted(found, key=lambda finished: finished.ended, reverse=True)
    return [finished for finished in ordered if finished.device_class == ordered[0].device_class][:READ]


def _class_here(device: str) -> str:
    """The prefix of this machine's device classes; empty if it cannot be determined without torch."""
    if device == "cpu":
        return f"cpu: {processor()} × "
    models = {
        line.partition(":")[2].strip()
        for file in _GPUS.glob("*/information")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    }
    return f"cuda: {models.pop()}" if len(models) == 1 else ""
