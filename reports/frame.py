"""A suite's finished cells as tidy frames: one row per cell and protocol, and the scores of every record beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet

from harness.errors import UserError, did_you_mean
from harness.evaluation.scope import summary
from harness.files import understood
from harness.store.store import Folder, Store
from reports.places import describe_missing, names_of, reason_of, section_of

AXES: Mapping[str, str] = {
    "reliability": "rel",
    "generality": "gen",
    "locality": "loc",
    "locality_unrelated": "loc_unrelated",
    "portability": "port",
}
"""Axis of the store → column of the frame."""

AVERAGED = ("rel", "gen", "loc")
"""The axes whose mean is Avg."""

PROTOCOLS = {"teacher_forced": "teacher-forced", "generation": "generation", "easyedit": "EasyEdit's scoring"}
"""Protocols in the order of their tables, with their titles."""

PHASES = ("setup", "edit", "attach", "evaluate")


@dataclass(frozen=True, slots=True)
class SuiteFrame:
    """What a store holds of one suite.

    Attributes:
        store: folder of the store.
        manifest: `suites/<suite>.<scale>.json` as written by the run.
        cells: one row per finished cell × protocol, in the order of the manifest. Scores in [0, 1], NaN for an axis
            without probes; `avg` is the mean of rel, gen and loc and NaN if one of them is; `<phase>_s` in seconds;
            `edit_actions` a frozenset of ids; `row` and `section` are the line and the part of a table it belongs to.
        records: one row per (cell, protocol, axis, record_id) with `score` and `exact`, means over the record's probes.
        scopes: one row per (cell, axis, record_id) and probe with `scope`, axes as in the store; only of cells whose method
            decides by prompt.
        missing: one row per unfinished cell: its cell, names and places as in `cells`, and the reason; empty
            where the folder does not say what it was.
    """

    store: Path
    manifest: Mapping[str, Any]
    cells: pd.DataFrame
    records: pd.DataFrame
    scopes: pd.DataFrame
    missing: pd.DataFrame

    def models(self) -> dict[str, str]:
        """Titles of all models of the suite by name, also of those without a finished cell, in the suite's order."""
        place = {name: number for number, name in enumerate(self.manifest["cells"])}
        named = pd.concat([self.cells, self.missing])[["cell", "model", "model_title"]]
        named = named[named["model"] != ""].sort_values("cell", key=lambda names: names.map(place), kind="stable")
        return dict(zip(named["model"], named["model_title"], strict=True))

    def commits(self) -> list[str]:
        """The commits that made the cells, shortened, in the order of first use; `+` marks uncommitted changes."""
        return list(dict.fromkeys(self.cells["commit"]))


def load_suite(store: Path, suite: str, scale: str) -> SuiteFrame:
    """Read the manifest and every finished cell it names.

    Raises:
        UserError: if the suite was never run at this scale, none of its cells is finished, two of its cells are the
            same line of a table, a file cannot be understood, or a cell's metrics contradict its records.
    """
    path = Store(store).manifest(suite, scale)
    if not path.is_file():
        raise _not_run(store, suite, scale)
    with understood(path):
        manifest = json.loads(path.read_text())
        again, folders = manifest["command"], [Store(store).cell(name) for name in manifest["cells"]]
    finished = [folder for folder in folders if folder.is_done]
    if not finished:
        reasons = "; ".join(dict.fromkeys(reason_of(folder) for folder in folders))
        raise UserError(f"{path}: none of its {len(folders)} cells is finished ({reasons})", fix=again)
    rows, answers = [], []
    for folder in finished:
        with understood(folder.path):
            rows += _read_cell(folder)
            answers.append(_read_answers(folder.path))
    cells = pd.DataFrame(rows)
    _tell_models_apart(cells)
    _refuse_twins(cells)
    records = pd.concat([_by_record(rows) for rows in answers], ignore_index=True)
    _check_against_records(cells, records)
    of_cells = [_by_question(rows) for rows in answers]
    for folder, scopes in zip(finished, of_cells, strict=True):
        _check_against_scopes(folder, scopes)
    _disambiguate(cells, "section", "section_title", _differences)
    _disambiguate(cells, "row", "title", _labels)
    missing = describe_missing([folder for folder in folders if folder not in finished], cells)
    return SuiteFrame(store, manifest, cells, records, pd.concat(of_cells, ignore_index=True), missing)


def _not_run(store: Path, suite: str, scale: str) -> UserError:
    """What to say of a suite without a manifest: at which scales there is one, or which suites have one."""
    runs = [run.stem.rpartition(".")[::2] for run in sorted((store / "suites").glob("[!.]*.json"))]
    text = f"{store}: suite '{suite}' has not been run at scale '{scale}' in this store"
    if scales := [other for name, other in runs if name == suite]:
        return UserError(
            f"{text}, but at {', '.join(scales)}", fix=f"python -m harness report {suite} --scale {scales[0]}"
        )
    again = f"python -m harness run suites/{suite}.yaml" + ("" if scale == "paper" else f" --scale {scale}")
    return UserError(f"{text}{did_you_mean(suite, {name for name, _ in runs})}", fix=again)


def _read_cell(folder: Folder) -> list[dict[str, Any]]:
    """One row per protocol of a finished cell."""
    cell, metrics, cost, origin = (folder.read(f"{name}.json") for name in ("cell", "metrics", "cost", "provenance"))
    data = cell["data"]
    common = {
        "cell": folder.path.name,
        **names_of(cell),
        "data": data["name"],
        "data_title": data["title"],
        "data_sha256": data["sha256"],
        "edits": data["edits"],
        "template": data["template"],
        "section": section_of(cell),
        "section_title": data["title"],
        "schedule": cell["schedule"]["kind"],
        "seed": cell["seed"],
        **{f"{phase}_s": float(cost["phases_s"].get(phase, 0.0)) for phase in PHASES},
        "edit_actions": frozenset(cost["edit_actions"]),
        "device_class": cost["device_class"],
        "citable": bool(cost["citable"]),
        "commit": (origin["commit"] or "no commit")[:9] + ("+" if origin["dirty"] else ""),
    }
    return [
        {**common, "protocol": name, **_scores(metrics.get(name, {}))}
        for name in PROTOCOLS
        if name in cell["protocols"]
    ]


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scores and exact matches of one protocol by column; an axis without probes is NaN, and so is then the average."""
    scores: dict[str, float] = {}
    for axis, column in AXES.items():
        scores[column] = metrics.get(axis, {}).get("score", np.nan)
        scores[f"{column}_exact"] = metrics.get(axis, {}).get("exact", np.nan)
    scores["avg"] = float(np.mean([scores[column] for column in AVERAGED]))
    return scores


def _read_answers(folder: Path) -> pd.DataFrame:
    """Rows of a cell without their texts; cells from before the scope was recorded have none."""
    columns = ["protocol", "axis", "record_id", "probe", "score", "exact"]
    file = folder / "records.parquet"
    has_scope = "scope" in parquet.read_schema(file).names
    rows = pd.read_parquet(file, columns=[*columns, "scope"] if has_scope else columns)
    rows.insert(0, "cell", folder.name)
    return rows if has_scope else rows.assign(scope=np.nan)


def _by_record(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of a cell by record: the mean over the probes of an axis."""
    rows = rows.assign(axis=rows["axis"].map(dict(AXES)))
    place = ["cell", "protocol", "axis", "record_id"]
    return rows.groupby(place, as_index=False, sort=False)[["score", "exact"]].mean()


def _by_question(rows: pd.DataFrame) -> pd.DataFrame:
    """Scope of each question that has one; all protocols ask the same questions."""
    once = rows[rows["scope"].notna()].drop_duplicates(["axis", "record_id", "probe"])
    return once[["cell", "axis", "record_id", "scope"]]


def _check_against_records(cells: pd.DataFrame, records: pd.DataFrame) -> None:
    """A table shows what the records say; a cell whose metrics say something else is refused."""
    means = records.groupby(["cell", "protocol", "axis"])["score"].mean()
    for row in cells.to_dict("records"):
        for column in AXES.values():
            of_records = float(means.get((row["cell"], row["protocol"], column), np.nan))
            if not np.isclose(row[column], of_records, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"{row['cell']}: metrics.json has {row['protocol']} {column} = {row[column]:.4f}, "
                    f"its records have {of_records:.4f}",
                    fix=f"delete cells/{row['cell']} and run the suite again",
                )


def _check_against_scopes(folder: Folder, scopes: pd.DataFrame) -> None:
    of_records = summary({str(axis): same["scope"].tolist() for axis, same in scopes.groupby("axis")})
    if folder.read("metrics.json").get("scope", {}) != of_records:
        raise UserError(
            f"{folder.path.name}: metrics.json and records.parquet disagree on the scope",
            fix=f"delete cells/{folder.path.name} and run the suite again",
        )


def _refuse_twins(cells: pd.DataFrame) -> None:
    place = ["row", "model", "section", "template", "seed", "protocol"]
    twins = cells[cells.duplicated(place, keep=False)]
    if len(twins):
        first = twins.iloc[0]
        same = twins[(twins[place] == first[place]).all(axis=1)]["cell"]
        raise UserError(
            f"{' and '.join(same)} are the same line of a table ('{first['label']}' on {first['model']}) "
            "with different settings",
            fix="give each method entry of the suite its own `label:`, and each folder of records a suite of its own",
        )


def _tell_models_apart(cells: pd.DataFrame) -> None:
    """Give models of one name a name and a title each, with the settings that are not the same in all."""
    for name, same in list(cells.groupby("model_name")):
        settings = list(dict.fromkeys(same["model_settings"]))
        for one, what in zip(settings, _differences(settings), strict=True):
            if what:
                is_one = (cells["model_name"] == name) & (cells["model_settings"] == one)
                cells.loc[is_one, ["model", "model_title"]] += f" ({what})"


def _disambiguate(cells: pd.DataFrame, key: str, title: str, apart: Callable[[Sequence[str]], list[str]]) -> None:
    """Add what sets them apart to titles that two keys share."""
    titles = dict(zip(cells[key], cells[title], strict=True))
    for shown in set(titles.values()):
        same = [name for name in titles if titles[name] == shown]
        if len(same) > 1:
            titles |= {name: f"{shown} ({what})" for name, what in zip(same, apart(same), strict=True)}
    cells[title] = cells[key].map(titles)


def _labels(rows: Sequence[str]) -> list[str]:
    return [row.partition("/")[0] for row in rows]


def _differences(sections: Sequence[str]) -> list[str]:
    """The settings of each section that are not the same in all."""
    settings = [json.loads(section) for section in sections]
    differing = [key for key in settings[0] if len({json.dumps(other.get(key)) for other in settings}) > 1]
    return [", ".join(f"{key} {other.get(key)}" for key in differing) for other in settings]
