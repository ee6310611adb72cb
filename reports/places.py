"""Where a cell belongs in the tables, finished or not: its row, its columns and its section."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness import registry
from harness.models import catalogue
from harness.registry import NATIVE
from harness.store.manifest import Manifest, number_of, stem_of
from harness.store.store import Folder

_NOWHERE = {
    **dict.fromkeys(("row", "title", "model", "model_title", "data", "data_title", "section", "template", "seed"), ""),
    "is_reference": False,
    "was_run": False,
    "was_asked": False,
}
"""Fields of an unfinished cell of which nothing is known."""

_SWEPT = re.compile(r"\.(?=[A-Za-z_]\w*=)")
"""Separates the parts of the label of a sweep's entry, `onceedit.lambda_weight=0.2.steps=3`."""


def swept(label: str) -> dict[str, str]:
    """The settings that a sweep gave to the entry with this label: `onceedit.lr=0.1` gives `{"lr": "0.1"}`."""
    return dict(part.split("=", 1) for part in _SWEPT.split(label)[1:])


def section_of(cell: Mapping[str, Any]) -> str:
    """The settings that all cells of a section share, as JSON: the dataset, with any prompt template, and the schedule."""
    data = {key: value for key, value in cell["data"].items() if key not in ("title", "template", "sha256")}
    return json.dumps({**data, **cell["schedule"]}, sort_keys=True)


def names_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Names and titles of a cell: `row` identifies its row and `model` its columns; titles are printed.

    `model_settings` holds what may differ between two models of the same name, as JSON.
    """
    method, model = cell["method"], cell["model"]
    settings = {key: str(value)[:12] for key, value in model.items() if key not in ("name", "title", "corpus")}
    label, variant, backend = cell["label"], method.get("variant"), method["backend"]
    titles = {method["name"]: method["title"], f"{method['name']}.{variant}": f"{method['title']} ({variant})"}
    titles |= {f"{written}.{backend}": title for written, title in titles.items()}
    parts: list[str] = _SWEPT.split(label)
    title = ", ".join([titles.get(parts[0], parts[0]), *parts[1:]]) + (f" [{backend}]" if backend != NATIVE else "")
    return {
        "label": label,
        "method": method["name"],
        "method_title": method["title"],
        "variant": variant,
        "backend": backend,
        "row": "/".join([label, variant or "", backend]),
        "title": title,
        "model": model["name"],
        "model_name": model["name"],
        "model_settings": json.dumps(settings, sort_keys=True),
        "model_title": model["title"],
        "is_reference": not method["edits"],
    }


def describe_missing(folders: Sequence[Folder], manifest: Manifest, cells: pd.DataFrame) -> pd.DataFrame:
    """Why each of the given cells and of those that are not known is unfinished, and which entries of a table it leaves empty."""
    columns, numbers = ["cell", *_NOWHERE, "reason"], manifest.numbers
    rows = [
        {
            "cell": folder.path.name,
            **_NOWHERE,
            **_place(folder, cells),
            "reason": reason_of(folder),
            "number": numbers.get(folder.path.name, 0),
            "was_run": folder.failure is not None,
            "was_asked": folder.failure is not None,
        }
        for folder in folders
    ]
    rows += [
        {
            "cell": "",
            **_NOWHERE,
            **_named(each.stem, cells),
            "reason": f"not run: {each.reason}",
            "number": number_of(each.name),
            "was_asked": each.was_asked,
        }
        for each in manifest.unresolved
    ]
    _find_sections(rows, cells.assign(number=cells["cell"].map(numbers)))
    return pd.DataFrame(rows, columns=columns)


def _find_sections(rows: Sequence[dict[str, Any]], cells: pd.DataFrame) -> None:
    """Give cells of which only the name is known the section of the other cells with the same settings.

    Args:
        rows: unfinished cells; their sections are filled in.
        cells: finished cells; in both, `number` is that of `Manifest.numbers`.
    """
    known: dict[tuple[str, int], set[str]] = {}
    everything: Sequence[Mapping[Any, Any]] = [*cells.to_dict("records"), *rows]
    for each in everything:
        if each["section"] and each["number"]:
            known.setdefault((each["data"], each["number"]), set()).add(each["section"])
    for row in rows:
        found = known.get((row["data"], row["number"]), set())
        if not row["section"] and len(found) == 1:
            (row["section"],) = found


def _place(folder: Folder, cells: pd.DataFrame) -> dict[str, Any]:
    """What an unfinished cell would have been: from its cell.json, else from its folder's name and the finished cells."""
    if (folder.path / "cell.json").is_file():
        cell = folder.read("cell.json")
        data = cell["data"]
        described = {"data": data["name"], "data_title": data["title"], "template": data["template"]}
        names = names_of(cell)
        is_of_model = (cells["model_name"] == names["model_name"]) & (
            cells["model_settings"] == names["model_settings"]
        )
        model_names = cells.loc[is_of_model, ["model", "model_title"]].drop_duplicates().to_dict("records")
        return {**names, **described, **dict(*model_names), "section": section_of(cell), "seed": str(cell["seed"])}
    return _named(stem_of(folder.path.name), cells)


def _named(stem: str, cells: pd.DataFrame) -> dict[str, Any]:
    """What the name of a folder says, in the words of the finished cells."""
    parts = _split(stem, cells)
    if parts is None:
        return {"title": stem}
    label, model, data = parts
    same_row, same_data = cells[cells["label"] == label], cells[cells["data"] == data]
    same_model = cells[cells["model_name"].str.replace("/", "_") == model]
    return {
        "row": same_row.iloc[0]["row"] if len(same_row) else f"{label}//{NATIVE}",
        "title": same_row.iloc[0]["title"] if len(same_row) else _method_title(label),
        "is_reference": bool(len(same_row) and same_row.iloc[0]["is_reference"]),
        "model": same_model.iloc[0]["model"] if len(same_model) else model,
        "model_title": same_model.iloc[0]["model_title"] if len(same_model) else _model_title(model),
        "data": data,
        "data_title": same_data.iloc[0]["data_title"] if len(same_data) else _data_title(data),
    }


def _method_title(label: str) -> str:
    return registry.methods.get(label).spec.title if label in registry.methods else label


def _model_title(model: str) -> str:
    return next((catalogue.entry(name).title for name in catalogue.names() if name.replace("/", "_") == model), model)


def _data_title(data: str) -> str:
    return registry.datasets.get(data).title if data in registry.datasets else data


def _split(stem: str, cells: pd.DataFrame) -> tuple[str, str, str] | None:
    """Split `<label>-<model>-<dataset>`. Each part may contain dashes, but two of them must be known from finished cells.

    A dataset may also be known by its name.
    """
    known = [list(dict.fromkeys(cells["label"])), list(dict.fromkeys(cells["model_name"].str.replace("/", "_")))]
    known.append(list(dict.fromkeys([*cells["data"], *registry.datasets])))
    for unknown in (0, 2, 1):
        options = [[".+"] if place == unknown else [re.escape(name) for name in known[place]] for place in range(3)]
        pattern = "-".join(f"({'|'.join(names)})" for names in options)
        if match := re.fullmatch(pattern, stem):
            return match[1], match[2], match[3]
    return None


def reason_of(folder: Folder) -> str:
    """What happened to an unfinished cell, in one line."""
    if folder.failure is not None:
        return f"failed: {folder.failure.splitlines()[0]}" if folder.failure else "failed"
    return "not run"
