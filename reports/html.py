"""A suite's report as one HTML file that works offline: summary, tables, figures, cells, and a viewer of answers."""

import base64
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from harness.store.answers import KEY, with_unedited
from harness.store.store import Folder, Store
from harness.store.verdicts import read_verdicts
from reports.common import AXES, protocol_title
from reports.layout import Table

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame

PAGE = Path(__file__).with_name("page")

MAX_ANSWERS = 30_000
"""Answers in the file, those of all cells together; a few megabytes. Of larger suites, each cell shows its first records."""

ANSWER_COLUMNS = (
    ("protocol", "text"),
    ("axis", "text"),
    ("record", "text"),
    ("prompt", "text"),
    ("target", "text"),
    ("unedited", "text"),
    ("edited", "text"),
    ("score", "number"),
)
"""Heading and kind of each column of the viewer of answers; those of judges follow."""

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as SVG, with the sentence below it."""

    caption: str
    svg_file: bytes

    @property
    def svg(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.svg_file).decode("ascii")


def render(frame: "SuiteFrame", tables: Sequence[Table], figures: Sequence[Drawing]) -> str:
    """The whole file. Every text is escaped; scripts and styles are part of it, and it loads nothing."""
    store = Store(frame.store)
    folders = [store.cell(str(name)) for name in frame.cells["cell"].unique()]
    titles = {folder.path.name: _title(frame, folder.path.name) for folder in folders}
    answers, note = _answers(store, folders, titles)
    return _environment.get_template("report.html").render(
        title=f"{frame.manifest.suite} at {frame.manifest.scale} scale",
        style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup((PAGE / "report.js").read_text(encoding="utf-8")),
        summary=list(_summary(frame)),
        tables=[_table(table) for table in tables],
        figures=figures,
        cells=[_cell(folder, titles[folder.path.name]) for folder in folders],
        answers=Markup(in_script(answers)),
        answers_note=note,
        answer_columns=(*ANSWER_COLUMNS, *_judge_columns(answers["judges"])),
        is_judged=bool(answers["judges"]),
        number=_number,
        footer=f"{frame.manifest.command} ({frame.manifest.created[:16]})",
    )


def in_script(value: Any) -> str:
    """JSON for a `<script>` element, escaped so that no HTML parser takes it for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _summary(frame: "SuiteFrame") -> Iterator[tuple[str, str]]:
    cells = frame.cells
    once = cells.drop_duplicates("cell")
    yield "cells", f"{len(once)} finished" + (f"; {gaps}" if (gaps := frame.gaps()) else "")
    yield "methods", ", ".join(dict.fromkeys(cells["title"]))
    yield "models", ", ".join(frame.models().values())
    of_data = once.drop_duplicates("section")
    yield (
        "data",
        "; ".join(
            f"{row['section_title']}: {row['edits']} edits, SHA-256 {row['data_sha256'][:12]}"
            for row in of_data.to_dict("records")
        ),
    )
    yield "protocols", ", ".join(map(protocol_title, dict.fromkeys(cells["protocol"])))
    yield "prompt templates", ", ".join(dict.fromkeys(cells["template"]))
    yield "seeds", ", ".join(str(seed) for seed in sorted(set(cells["seed"])))
    yield "devices", "; ".join(dict.fromkeys(cells["device_class"]))
    yield "code", ", ".join(frame.commits())
    yield "run again", frame.manifest.again("run", frame.store)


def _table(table: Table) -> Mapping[str, Any]:
    groups = [
        (group, len(list(same))) for group, same in itertools.groupby(table.columns, key=lambda column: column.group)
    ]
    return {
        **{name: getattr(table, name) for name in ("title", "caption", "columns", "sections", "notes")},
        "groups": groups if any(group for group, _ in groups) else [],
    }


def _title(frame: "SuiteFrame", name: str) -> str:
    """Method, model, dataset and, where they vary, template and seed."""
    row = frame.cells[frame.cells["cell"] == name].iloc[0]
    parts = [row["title"], row["model_title"], row["section_title"]]
    parts += [f"prompt {row['template']}"] * (frame.cells["template"].nunique() > 1)
    parts += [f"seed {row['seed']}"] * (frame.cells["seed"].nunique() > 1)
    return " · ".join(map(str, parts))


def _cell(folder: Folder, title: str) -> Mapping[str, Any]:
    """What the page says about a cell."""
    cell, metrics, cost, origin = (folder.read(f"{name}.json") for name in ("cell", "metrics", "cost", "provenance"))
    method, sources = cell["method"], cell["method"].get("sources", {})
    axes = [axis for axis in AXES if any(axis in metrics.get(name, {}) for name in cell["protocols"])]
    scores = [
        (protocol_title(name), [_score(metrics.get(name, {}).get(axis)) for axis in axes]) for name in cell["protocols"]
    ]
    settings = {**method["hparams"], **origin.get("chosen", {})}
    facts = [
        ("method", f"{method['name']} version {method['version']}, {method['backend']}"),
        ("model", " ".join(str(cell["model"].get(key) or "") for key in ("name", "weights", "dtype")).strip()),
        ("data", ", ".join(f"{key} {value}" for key, value in cell["data"].items() if key not in ("title", "sha256"))),
        ("schedule", ", ".join(f"{key} {value}" for key, value in cell["schedule"].items())),
        ("seed", str(cell["seed"])),
        ("time", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in cost["phases_s"].items())),
        ("device", cost["device_class"] + ("" if cost["citable"] else ", not citable")),
        (
            "code",
            (origin.get("commit") or "no commit")[:12] + (", with uncommitted changes" if origin["dirty"] else ""),
        ),
        ("command", origin.get("command", "")),
        *(("remark", remark) for remark in origin.get("remarks", ())),
    ]
    return {
        "name": folder.path.name,
        "title": title,
        "text": f"{title} {folder.path.name}",
        "axes": axes,
        "scores": scores,
        "facts": [(name, text) for name, text in facts if text],
        "settings": [
            (name, json.dumps(value, ensure_ascii=False), sources.get(name, "")) for name, value in settings.items()
        ],
    }


def _score(found: Mapping[str, float] | None) -> str:
    return f"{found['score']:.3f}" if found else "–"


def _number(value: float) -> str:
    """A value to sort by; empty if there is none."""
    return "" if math.isnan(value) else repr(float(value))


def _judge_columns(judges: Sequence[str]) -> list[tuple[str, str]]:
    """Heading and kind of the column of each judge; the name only tells several of them apart."""
    return [("verdict" if len(judges) == 1 else f"verdict of {judge}", "text") for judge in judges]


def _verdicts(folder: Folder) -> dict[tuple[Any, ...], dict[str, int]]:
    """By question, each judge's verdict on a cell's answer: 1 for correct, 0 for incorrect; others are left out."""
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for row in read_verdicts(folder).dropna(subset="verdict").to_dict("records"):
        found.setdefault(tuple(row[name] for name in KEY), {})[row["judge"]] = int(row["verdict"])
    return found


def _answers(store: Store, folders: Sequence[Folder], titles: Mapping[str, str]) -> tuple[Mapping[str, Any], str]:
    """The answers of all cells as numbers into lists of strings, and a sentence on what was left out."""
    verdicts = [_verdicts(folder) for folder in folders]
    judges = list(dict.fromkeys(judge for of_cell in verdicts for said in of_cell.values() for judge in said))
    strings: dict[str, int] = {}
    protocols: dict[str, int] = {}
    axes: dict[str, int] = {}
    budget = max(1, MAX_ANSWERS // max(1, len(folders)))
    cells, total, kept = [], 0, 0
    for folder, of_cell in zip(folders, verdicts, strict=True):
        rows = with_unedited(store, folder)
        chosen = first_records(rows, budget)
        total, kept = total + len(rows), kept + len(chosen)
        answers = [
            [
                protocols.setdefault(row["protocol"], len(protocols)),
                axes.setdefault(row["axis"], len(axes)),
                *(
                    -1 if row[column] is None else strings.setdefault(row[column], len(strings))
                    for column in ("record_id", "prompt", "target", "unedited", "predicted")
                ),
                round(row["score"], 4),
                int(row["exact"]),
                *(said.get(judge, -1) for judge in judges),
            ]
            for row in chosen.to_dict("records")
            for said in [of_cell.get(tuple(row[name] for name in KEY), {})]
        ]
        cells.append({"name": folder.path.name, "title": titles[folder.path.name], "answers": answers})
    note = (
        f"All {total:,} answers of all cells."
        if kept == total
        else f"{kept:,} of {total:,} answers: those about the first records of each cell. `harness answers CELL` shows all of one."
    )
    return {
        "strings": list(strings),
        "protocols": list(protocols),
        "axes": list(axes),
        "judges": judges,
        "cells": cells,
    }, note


def first_records(rows: "pd.DataFrame", limit: int) -> "pd.DataFrame":
    """As many answers as fit, about the first edited and the first unrelated records, in their order."""
    if len(rows) <= limit:
        return rows
    is_unrelated = rows["axis"] == "locality_unrelated"
    place = rows.groupby(is_unrelated)["record_id"].transform(lambda ids: ids.factorize()[0])
    counts = place.value_counts().sort_index().cumsum()
    return rows[place < max(1, int((counts <= limit).sum()))]
