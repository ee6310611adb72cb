"""Load an exported model: a checkpoint as it is, or an edit on top of the model that it was made on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import registry
from harness.errors import UserError
from harness.live.export import ARTIFACTS, MODEL, STATE, WIDE, read_description
from harness.live.model import LiveModel, Origin
from harness.live.opening import device_of
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.models.weights import InstalledWeights
from harness.plan.recall import model_of
from harness.records import EditRequest
from harness.run.context import RunContext
from harness.run.jobs import prepare_torch
from harness.run.progress import Display
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store


def load_edited(folder: Path | str, *, device: str = "auto", source: str | None = None) -> LiveModel:
    """Load what `harness export` or `LiveModel.save` has written; it answers as the exported model did, bit for bit.

    Args:
        folder: the exported folder.
        device: `cpu`, `cuda` or `auto`.
        source: where the unedited model is now, for an edit whose model has moved.

    Raises:
        UserError: if the folder is not an export, the unedited model is missing or a different one, or the method has changed.
    """
    prepare_torch(None)
    home, device = Path(folder), device_of(device)
    described, requests = read_description(home)
    origin = _origin(home, described, requests, source)
    if described["kind"] == "checkpoint":
        return _checkpoint(home, origin, device)
    return _edit(home, origin, device)


def _origin(home: Path, described: Mapping[str, Any], requests: tuple[EditRequest, ...], source: str | None) -> Origin:
    method, written = described["method"], described["model"]
    if described["kind"] == "checkpoint":
        source = str(home)
    elif (home / MODEL).is_dir():
        source = str(home / MODEL)
    model = model_of(written, source)
    if described["kind"] == "edit" and written["sha256"] and model.sha256 != written["sha256"]:
        raise UserError(
            f"{home}: made on a different model than the one now at {model.source} (files {written['sha256'][:12]}, not "
            f"{model.sha256[:12]})",
            fix="harness.load_edited(DIR, source=…): the folder of the model that was edited",
        )
    return Origin(
        registry.find_method(method["name"], method["backend"]).spec,
        method["backend"],
        method["hparams"],
        model,
        requests,
        described["seed"],
        {role: home / ARTIFACTS / role for role in described["artifacts"]},
        home,
        described["origin"],
        method.get("code", {}),
    )


def _checkpoint(home: Path, origin: Origin, device: str) -> LiveModel:
    from safetensors.torch import load_file

    model = load(origin.model, device)
    if (home / WIDE).is_file():
        InstalledWeights(model.model, load_file(home / WIDE, device=device))
    return LiveModel(model, WeightEditedModel(model), None, origin)


def _edit(home: Path, origin: Origin, device: str) -> LiveModel:
    from safetensors.torch import load_file

    found = registry.find_method(origin.method.name, origin.backend)
    written = read_description(home)[0]["method"]["version"]
    if found.spec.version != written:
        raise UserError(
            f"{home}: made by version {written} of {origin.method.name}, but this is version {found.spec.version}",
            fix="export the cell again",
        )
    method = found(found.Hparams.model_validate(origin.hparams))
    if (code := registry.code_of(method)) != origin.code:
        changed = ", ".join(sorted(key for key in {*code, *origin.code} if code.get(key) != origin.code.get(key)))
        raise UserError(
            f"{home}: made by other code of {origin.method.name}, {origin.backend} ({changed} changed)",
            fix="export the cell again",
        )
    context = RunContext(ArtifactCache(Store(home)), device, Display(Console(quiet=True)))
    context.restart(origin.seed)
    model: LoadedModel = load(origin.model, device)
    if (home / STATE).is_file():
        state = load_file(home / STATE, device=device)
        edited = method.extend(model, state, (), origin.artifacts, context)
    else:
        edited = method.edit(model, origin.requests, origin.artifacts, context)
    return LiveModel(model, edited, WeightEditedModel(model), origin, edited.revert)
