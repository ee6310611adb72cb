"""Answers to the NeurIPS paper checklist's questions about experiments, from the provenance of finished cells."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import registry
from harness.data.sources import SYNTHETIC
from harness.models.catalogue import CATALOGUE
from harness.plain_text import memory_size
from harness.store.store import Folder
from reports.significance import LEVEL as ERROR_LEVEL
from reports.stats import LEVEL, RESAMPLES

PACKAGE = "editing-harness"

Parts = Mapping[str, Any]
"""The content of cell.json, cost.json and provenance.json of a finished cell, by name of the file."""


def parts_of(folder: Folder) -> Parts:
    """Read the files that the checklist is filled from."""
    return {name: folder.read(f"{name}.json") for name in ("cell", "cost", "provenance")}


def checklist(cells: Sequence[Parts]) -> dict[str, str]:
    """Answers by the titles of the checklist's items, about all of these cells together."""
    return {
        "Experimental result reproducibility": _reproducibility(cells),
        "Open access to data and code": _access(cells),
        "Experimental setting/details": _setting(cells),
        "Experiment statistical significance": _significance(cells),
        "Experiments compute resources": _compute(cells),
        "Licenses for existing assets": _licences(cells),
    }


def as_markdown(title: str, answers: Mapping[str, str]) -> str:
    """The answers as a page to copy from."""
    items = (f"**{item}.** {answer}\n" for item, answer in answers.items())
    return "\n".join([f"# Checklist: {title}\n", *items])


def _reproducibility(cells: Sequence[Parts]) -> str:
    origins = [each["provenance"] for each in cells]
    commits = _listed(
        f"{origin['commit'] or 'unknown'}{' with uncommitted changes' * bool(origin['dirty'])}" for origin in origins
    )
    packages = _listed(
        f"{name} {version}" for origin in origins for name, version in origin["packages"].items() if version
    )
    python = _listed(origin["python"] for origin in origins)
    commands = "; ".join(dict.fromkeys(str(origin["command"]) for origin in origins))
    return f"Code commit {commits}; Python {python}; {packages}. Commands: {commands}."


def _access(cells: Sequence[Parts]) -> str:
    models = _listed(
        " ".join(filter(None, [model["name"], model.get("source", ""), model.get("revision", "")]))
        for each in cells
        for model in each["provenance"].get("models") or [each["cell"]["model"]]
    )
    files = _listed(
        f"{Path(name).name} (sha256 {sha256})"
        for each in cells
        for name, sha256 in each["provenance"].get("data_files", {}).items()
    )
    records = _listed(
        f"{each['cell']['data']['title']} (sha256 {each['cell']['data']['sha256'][:12]})" for each in cells
    )
    return f"Models: {models}. Files of records: {files}. Records used: {records}."


def _setting(cells: Sequence[Parts]) -> str:
    data = _listed(
        f"{data['edits']} edits of {data['title']} ({data['split']} split, prompt template {data['template']})"
        for data in (each["cell"]["data"] for each in cells)
    )
    schedules = _listed(each["cell"]["schedule"]["kind"] for each in cells)
    return (
        f"{data}; {schedules} editing; greedy decoding. Every hyper-parameter and its source: "
        "model_info.additional_details of each file."
    )


def _significance(cells: Sequence[Parts]) -> str:
    seeds = sorted({each["cell"]["seed"] for each in cells})
    over = "seeds and records" if len(seeds) > 1 else "records"
    return (
        f"Seeds {_listed(map(str, seeds))}. Intervals: {LEVEL:.0%} BCa bootstrap with {RESAMPLES} resamples of {over}, where "
        f"records about one subject are drawn together. Tables: paired permutation tests at {ERROR_LEVEL:.0%}, Holm over the table."
    )


def _compute(cells: Sequence[Parts]) -> str:
    costs = [each["cost"] for each in cells]
    devices = _listed(cost["device_class"] for cost in costs)
    hours = sum(sum(cost["phases_s"].values()) for cost in costs) / 3600
    phases = {
        phase: sum(cost["phases_s"].get(phase, 0.0) for cost in costs)
        for phase in dict.fromkeys(name for cost in costs for name in cost["phases_s"])
    }
    shown = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
    disturbed = sum(not cost["citable"] for cost in costs)
    doubt = f"; {disturbed} of {len(costs)} cells were interrupted" if disturbed else ""
    return (
        f"{devices}; {hours:.2f} h for {len(costs)} cell{'s' * (len(costs) > 1)} ({shown}; setup that cells share is "
        f"charged to each of them); memory at most {_peak(costs, 'peak_memory_bytes')}; with building artifacts: "
        f"{_peak(costs, 'peak_memory_with_artifacts_bytes')}{doubt}."
    )


def _peak(costs: Sequence[Mapping[str, Any]], name: str) -> str:
    """The highest of the cells' values; unknown if one of them is."""
    peaks = [cost.get(name) for cost in costs]
    known = [peak for peak in peaks if peak is not None]
    return memory_size(max(known) if len(known) == len(peaks) else None)


def _licences(cells: Sequence[Parts]) -> str:
    code = metadata.metadata(PACKAGE).json.get("license_expression", "see its LICENSE")
    datasets = _listed(f"{each['cell']['data']['title']}: {_licence(each)}" for each in cells)
    pretrained = (each["cell"]["model"]["name"] for each in cells if each["cell"]["model"]["weights"] == "pretrained")
    models = _listed(f"{name}: {_terms(name)}" for name in pretrained)
    return f"{PACKAGE}: {code}. Datasets: {datasets}. Models: {models or 'trained on the spot'}."


def _licence(parts: Parts) -> str:
    """The licence of a cell's records: of the upstream files, unless the records are generated."""
    if any(name.startswith(SYNTHETIC) for name in parts["provenance"].get("data_files", {})):
        return "generated"
    name = parts["cell"]["data"]["name"]
    info = registry.datasets.get(name) if name in registry.datasets else None
    licences = _listed(download.licence for download in info.downloads) if info else ""
    return licences or "see its source"


def _terms(model: str) -> str:
    return (CATALOGUE[model].terms if model in CATALOGUE else "") or "see its model card"


def _listed(items: Iterable[str]) -> str:
    """Each item once, in order of appearance."""
    return ", ".join(dict.fromkeys(items))
