"""Export an edited model to a folder: a checkpoint for plain transformers, or an edit to load again.

Weights are written as a checkpoint in Hugging Face's format. Everything else is written as an edit: what the method keeps, its
artifacts and the records, but not the model that was edited, unless it was trained here.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from harness import __version__
from harness.commands import harness_command
from harness.errors import UserError
from harness.files import explained, share_like, write_json
from harness.live import card
from harness.live.model import LiveModel
from harness.models.checkpoint import READ_BY_TOKENIZERS
from harness.models.edited import InstalledModel
from harness.models.loading import folder_of
from harness.plan.recall import model_as_json
from harness.records import EditRequest

EDITED, REQUESTS, STATE, WIDE = "edited.json", "edits.jsonl", "state.safetensors", "edited.safetensors"
"""Files of an export: its origin, the edits, a method's state besides weights, edited weights of a wider type."""
MODEL, ARTIFACTS = "model", "artifacts"
"""Folders of an exported edit: the unedited model if it was trained here, and the method's artifacts by role."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        kind: `checkpoint` for transformers, or `edit` for `harness.load_edited` alone.
        remarks: notes for its users.
    """

    folder: Path
    kind: Literal["checkpoint", "edit"]
    size_bytes: int
    remarks: tuple[str, ...]


def export(live: LiveModel, folder: Path, remarks: tuple[str, ...] = ()) -> Exported:
    """Write an edited model to a new folder.

    Args:
        live: the edited model.
        folder: a folder that does not exist yet, or is empty.
        remarks: further sentences for its README.

    Raises:
        UserError: if there is something in the folder, or it cannot be written.
    """
    require_new(folder)
    folder = folder.resolve()  # `.` has no name
    partial = folder.with_name(f".{folder.name}.partial")
    with explained(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            kind, found = _write(live, partial)
            remarks = (*found, *live.remarks(), *remarks)
            _describe(live, partial, kind, remarks)
            share_like(partial / EDITED)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(folder, kind, size, remarks)


def require_new(folder: Path) -> None:
    """Check that an export can become this folder, which replaces an empty one.

    Raises:
        UserError: if it is a file, has something in it, or is the working directory.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) or folder.samefile(Path.cwd())):
        raise UserError(f"{folder}: already exists", fix="--to a new folder")


def _write(live: LiveModel, folder: Path) -> tuple[Literal["checkpoint", "edit"], tuple[str, ...]]:
    if live.unedited is None:
        raise UserError(
            f"{live.origin.place}: is already an exported checkpoint", fix=f"cp -r {live.origin.place} {folder.parent}"
        )
    if isinstance(live.edited, InstalledModel):
        return "checkpoint", _write_checkpoint(live, live.edited, folder)
    return "edit", _write_edit(live, folder)


def _write_checkpoint(live: LiveModel, edited: InstalledModel, folder: Path) -> tuple[str, ...]:
    """The whole model with its edited weights, in its own precision, and the tokenizer's files as they are."""
    import torch
    from safetensors.torch import save_file

    model, wide = live.model.model, False
    with edited.installed():
        dtype = getattr(torch, live.origin.model.dtype)
        state = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
        }
        wide = any(value.dtype != dtype for value in edited.weights.values())
        model.save_pretrained(folder, state_dict=state)
    source = folder_of(live.origin.model)
    for file in source.iterdir():
        if file.is_file() and any(fnmatchcase(file.name, pattern) for pattern in READ_BY_TOKENIZERS):
            shutil.copyfile(file, folder / file.name)
    if not wide:
        return ()
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in edited.weights.items()}, folder / WIDE
    )
    return (
        f"the edited matrices are {next(iter(edited.weights.values())).dtype} and were rounded to {live.origin.model.dtype} "
        f"for transformers; `harness.load_edited` uses the exact ones in {WIDE}",
    )


def _write_edit(live: LiveModel, folder: Path) -> tuple[str, ...]:
    """What the method keeps, its artifacts, and the unedited model if it was trained here."""
    from safetensors.torch import save_file

    if state := live.state():
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, folder / STATE)
    for role, source in live.origin.artifacts.items():
        shutil.copytree(source, folder / ARTIFACTS / role)
    if live.origin.model.weights == "trained":
        shutil.copytree(folder_of(live.origin.model), folder / MODEL)
    return ()


def _describe(live: LiveModel, folder: Path, kind: str, remarks: tuple[str, ...]) -> None:
    """The machine-readable description, the edits and the README."""
    origin = live.origin
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "harness": __version__,
        "method": {
            "name": origin.method.name,
            "title": origin.method.title,
            "version": origin.method.version,
            "backend": origin.backend,
            "hparams": origin.hparams,
            "code": dict(origin.code),
        },
        "model": model_as_json(replace(origin.model, device_map="")),
        "seed": origin.seed,
        "artifacts": sorted(origin.artifacts),
        "remarks": list(remarks),
        "origin": dict(origin.facts),
    }
    write_json(folder / EDITED, described)
    lines = (json.dumps(asdict(request), ensure_ascii=False) for request in origin.requests)
    (folder / REQUESTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "README.md").write_text(card.readme(live, kind, remarks), encoding="utf-8")


def read_description(folder: Path) -> tuple[Mapping[str, Any], tuple[EditRequest, ...]]:
    """The description of an export, and its edits.

    Raises:
        UserError: if the folder is not an export, or one of a later format.
    """
    file = folder / EDITED
    if not file.is_file():
        raise UserError(
            f"{folder}: no exported model ({EDITED} is missing)", fix=harness_command("export", "CELL", to="DIR")
        )
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        lines = (folder / REQUESTS).read_text(encoding="utf-8").splitlines()
        requests = tuple(EditRequest(**json.loads(line)) for line in lines)
        version = described["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: a damaged export: {error}", fix="export the cell again") from None
    if version != FORMAT:
        raise UserError(
            f"{folder}: format {version}, but this version reads format {FORMAT}", fix="export the cell again"
        )
    return described, requests
