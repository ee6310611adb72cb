"""Rebuild the cell of a finished folder from its records, so that its edits can be made again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness import registry
from harness.commands import rerun, run_of
from harness.data.sources import SYNTHETIC
from harness.errors import UserError
from harness.evaluation.capability.tasks import TaskRef
from harness.evaluation.fluency import FluencyRef
from harness.files import understood
from harness.models import catalogue
from harness.models.catalogue import ModelRef
from harness.plan.cell import Cell
from harness.records import DataRef
from harness.store.store import Folder
from harness.suite.schedule import Schedule
from harness.yaml_source import complaint

_MODEL, _DATA = TypeAdapter(ModelRef), TypeAdapter(DataRef)
_TASKS = TypeAdapter(tuple[TaskRef, ...])


def references(cell: Cell) -> dict[str, Any]:
    """Everything that an identity leaves out: places of model and records, and the values of all hyper-parameters. JSON-like.

    Places are written in full, so that they are found from every working directory.
    """
    tasks = tuple(replace(task, path=_in_full(task.path)) for task in cell.capability)
    return {
        "model": model_as_json(cell.model),
        "data": _DATA.dump_python(_placed(cell.data), mode="json"),
        "hparams": dict(cell.hparams),
        **({"fluency": _in_full(cell.fluency.path)} if cell.fluency else {}),
        **({"capability": _TASKS.dump_python(tasks, mode="json")} if tasks else {}),
    }


def model_as_json(model: ModelRef) -> dict[str, Any]:
    """A reference to a model without what follows from its files."""
    placed = replace(model, source=_in_full(model.source), corpus=model.corpus and _placed(model.corpus))
    written: dict[str, Any] = _MODEL.dump_python(placed, mode="json", exclude={"known"})
    return written


def _placed(data: DataRef) -> DataRef:
    return data if data.source == SYNTHETIC else replace(data, source=_in_full(data.source))


def _in_full(given: str) -> str:
    """An existing path in full; a hub id stays as it is."""
    path = Path(given).expanduser()
    return str(path.absolute()) if given and path.exists() else given


def model_of(written: Any, source: str | None = None) -> ModelRef:
    """The reference to a model written by `model_as_json`, with the present content of its files.

    Args:
        written: the reference.
        source: where the files are now; default: where they were.

    Raises:
        UserError: as `harness.models.catalogue.reference`.
    """
    given = _MODEL.validate_python(written)
    return catalogue.reference(
        given.name,
        weights="pretrained" if source else given.weights,
        source=given.source if source is None else source,
        dtype=given.dtype,
        corpus=given.corpus,
        revision="" if source else given.revision,
        layout=given.layout,
        device_map=given.device_map,
    )


def recalled(folder: Folder) -> Cell:
    """The cell of a finished folder.

    Raises:
        UserError: if the cell is not finished, if its folder is damaged or of an earlier version, or if the code, the model or
            the records that it was made with have changed since.
    """
    if not folder.is_done:
        raise UserError(f"{folder.path}: the cell is not finished", fix=rerun(folder.path))
    with understood(folder.path):
        kept, found = folder.read("cell.json"), folder.read("provenance.json").get("references")
    if found is None:
        raise UserError(f"{folder.path}: made by a version that did not record its references", fix=rerun(folder.path))
    try:
        model, data = model_of(found.get("model")), _DATA.validate_python(found.get("data"))
    except ValidationError as error:
        raise UserError(
            f"{folder.path}: damaged references: {complaint(error.errors()[0])}", fix=rerun(folder.path)
        ) from None
    method, schedule = kept["method"], {**kept["schedule"]}
    if "score_at" in schedule:
        schedule["score_at"] = tuple(schedule["score_at"])
    cell = Cell(
        method=registry.find_method(method["name"], method["backend"]).spec,
        label=kept["label"],
        variant=method["variant"],
        backend=method["backend"],
        hparams=found["hparams"],
        sources=method["sources"],
        model=model,
        data=data,
        protocols=tuple(kept["protocols"]),
        schedule=Schedule(**schedule),
        seed=kept["seed"],
        eval_batch=kept["eval_batch"],
        keep_weights=kept.get("keep_weights", False),
        classic=kept.get("classic", False),
        fluency=FluencyRef(found["fluency"], kept["fluency"]["references"]) if "fluency" in found else None,
        capability=_TASKS.validate_python(found.get("capability", ())),
    )
    if cell.cell_id != kept["cell_id"]:
        changed = ", ".join(
            part for part, value in cell.identity().items() if kept.get(part) != _shown(part, value, kept)
        )
        raise UserError(
            f"{folder.path}: its {changed or 'protocols'} changed since it was run, so its edits cannot be made again; "
            "a new run makes a cell of its own",
            fix=run_of(folder.path),
        )
    return cell


def _shown(part: str, value: Any, kept: Any) -> Any:
    """A part of an identity with what cell.json adds to it."""
    return {**kept[part], **value} if part in ("method", "model", "data") else value
