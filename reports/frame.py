"""The finished cells of a suite as tidy data frames: one row per cell and protocol, and one per scored record."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from pyarrow import parquet

from harness import registry
from harness.commands import rerun
from harness.errors import UserError
from harness.evaluation.scope import summary
from harness.files import understood
from harness.store.manifest import Manifest, Options, find_manifest
from harness.store.store import Folder, Store
from harness.tokens import Query
from reports.common import AVERAGED, AXES, PHASES, in_order
from reports.costs import flops_columns
from reports.places import describe_missing, names_of, reason_of, section_of


@dataclass(frozen=True, slots=True, eq=False)
class SuiteFrame:
    """The results of one suite in a store.

    Attributes:
        store: folder of the store.
        manifest: what the last run says about the suite's cells.
        cells: one row per finished cell and protocol, in the order of the manifest. Scores are in [0, 1], NaN for an axis
            without probes; `avg` is the mean of rel, gen and loc, NaN if one of them is; `<axis>_max` is the highest score
            that a model with all edits can reach, NaN where unknown; `<phase>_s` is in seconds;
            `attach_per_edit_run_s` is what another edit run would take of `attach_s`, NaN where unknown;
            `flops_<phase>`, `flops_per_edit` and so on are FLOPs (see `reports.costs.flops_columns`);
            `peak_memory_bytes` is that of the cell, `peak_memory_with_artifacts_bytes` is NaN if that of an artifact is unknown;
            `edit_actions` is a frozenset with the ids of the edit runs, and `is_edit_shared` says whether these are artifacts;
            `<phase>_classes` is a frozenset with the classes of device that the seconds of the phase come from; `remarks` is
            what the edited model says about itself; `section` and `row` say where in a table the
            cell belongs.
        records: one row per (cell, protocol, axis, record_id) with `score` and `exact`, means over the record's probes, and
            `cluster`, the first record about the same subject.
        questions: one row per (cell, protocol, axis, record_id, probe), for axes whose questions are of several kinds: `kind` and
            `chain` of the question, `score`, `exact` and `cluster`.
        scopes: one row per (cell, axis, record_id) and probe with its routing score `scope` and `cluster`, axes named as in
            the store; only for cells whose method decides by prompt whether an edit applies.
        missing: one row per unfinished cell: its name, titles, section and row as in `cells`, the reason, whether it
            was run (and failed), and whether it was to be run; fields are empty where neither the folder nor its name tells.
    """

    store: Path
    manifest: Manifest
    cells: pd.DataFrame
    records: pd.DataFrame
    questions: pd.DataFrame
    scopes: pd.DataFrame
    missing: pd.DataFrame

    def models(self) -> dict[str, str]:
        """Titles of all models that were run, by name, in the suite's order, including those without a finished cell."""
        named = self.in_order(pd.concat([self.cells, self.missing[self.missing["was_run"]]]))
        named = named[named["model"] != ""]
        return dict(zip(named["model"], named["model_title"], strict=True))

    def templates(self) -> list[str]:
        """All prompt templates that were run, in the suite's order, including those without a finished cell."""
        numbers, known = self.manifest.numbers, pd.concat([self.cells, self.missing[self.missing["template"] != ""]])
        known = known.sort_values("cell", key=lambda names: names.map(numbers), kind="stable")
        return list(dict.fromkeys(known["template"]))

    def in_order(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Rows of `cells` and `missing` in the suite's order."""
        place = {name: number for number, name in enumerate(self.manifest.cells)}
        return cells.sort_values("cell", key=lambda names: names.map(place), kind="stable")

    def gaps(self) -> str:
        """A sentence on how many of the suite's cells are missing, why, and the command that runs them; empty if none is."""
        reasons = Counter(
            "failed" if was_run else reason
            for was_run, reason in zip(self.missing["was_run"], self.missing["reason"], strict=True)
        )
        if not reasons:
            return ""
        total = len(self.manifest.cells) + len(self.manifest.unresolved)
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        verb = "run" if reasons.keys() - {"failed"} else "retry"
        return f"{reasons.total()} of {total} cells are missing: {why}; run: {self.manifest.again(verb, self.store)}"

    def commits(self) -> list[str]:
        """Abbreviated commits that computed the cells, in order of appearance; `+` marks uncommitted changes."""
        return list(dict.fromkeys(self.cells["commit"]))


def load_suite(store: Path, suite: str, scale: str, **options: Unpack[Options]) -> SuiteFrame:
    """Read every finished cell of a suite at a scale, run with these options of the command line.

    Raises:
        UserError: if the suite was never run like that, if none of its cells is finished, if two of them belong in the
            same row of a table, if a file cannot be read, or if the metrics of a cell contradict its records.
    """
    manifest = find_manifest(store, suite, scale, **options)
    folders = [Store(store).cell(name) for name in manifest.cells]
    finished = [folder for folder in folders if folder.is_done]
    if not finished:
        reasons = "; ".join(dict.fromkeys(reason_of(folder) for folder in folders))
        raise UserError(
            f"{store}: none of the {len(folders)} cells of {manifest.name} is finished ({reasons})",
            fix=manifest.again("run", store),
        )
    rows, answers = [], []
    for folder in finished:
        with understood(folder.path):
            rows += _read_cell(folder)
            answers.append(_read_answers(folder))
    cells = pd.DataFrame(rows)
    _distinguish_models(cells)
    _refuse_duplicates(cells)
    records = pd.concat([_by_record(rows) for rows in answers], ignore_index=True)
    _check_against_records(cells, records, Store(store))
    questions = pd.concat([_of_kinds(rows) for rows in answers], ignore_index=True)
    of_cells = [_by_question(rows) for rows in answers]
    for folder, scopes in zip(finished, of_cells, strict=True):
        _check_against_scopes(folder, scopes)
    _disambiguate(cells, "section", "section_title", _differences)
    _disambiguate(cells, "row", "title", _labels)
    missing = describe_missing([folder for folder in folders if folder not in finished], manifest, cells)
    return SuiteFrame(store, manifest, cells, records, questions, pd.concat(of_cells, ignore_index=True), missing)


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
        "attach_per_edit_run_s": _number(cost.get("attach_per_edit_run_s")),
        **flops_columns(cost),
        "edit_actions": frozenset(cost["edit_actions"]),
        "is_edit_shared": any(not action.startswith(cell["cell_id"]) for action in cost["edit_actions"]),
        **_device_classes(cost),
        "peak_memory_bytes": _number(cost.get("peak_memory_bytes")),
        "peak_memory_with_artifacts_bytes": _number(cost.get("peak_memory_with_artifacts_bytes")),
        "device_class": cost["device_class"],
        "shared_by": int(cost.get("shared_by", 1)),
        "citable": bool(cost["citable"]),
        "remarks": tuple(origin.get("remarks", ())),
        "commit": (origin["commit"] or "no commit")[:9] + ("+" if origin["dirty"] else ""),
    }
    return [
        {**common, "protocol": name, **_scores(metrics.get(name, {})), **_maxima(metrics, name)}
        for name in in_order(cell["protocols"])
    ]


def _number(value: float | None) -> float:
    """A value that may be missing or unknown, then NaN."""
    return np.nan if value is None else float(value)


def _device_classes(cost: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """What the seconds of each phase were measured on: the cell's device, where it is not recorded by phase."""
    by_phase = cost.get("device_classes", {phase: [cost["device_class"]] for phase in PHASES})
    return {f"{phase}_classes": frozenset(by_phase.get(phase, ())) for phase in PHASES}


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scores and exact-match rates of one protocol by column; NaN for an axis without probes, and then for the average."""
    scores: dict[str, float] = {}
    for axis, column in AXES.items():
        scores[column] = metrics.get(axis, {}).get("score", np.nan)
        scores[f"{column}_exact"] = metrics.get(axis, {}).get("exact", np.nan)
    scores["avg"] = float(np.mean([scores[column] for column in AVERAGED]))
    return scores


def _maxima(metrics: Mapping[str, Any], protocol: str) -> dict[str, float]:
    """By column, `rel_max` and so on, the highest score that a model with all edits can reach; NaN where unknown."""
    found = metrics.get("attainable", {}).get(protocol, {})
    otherwise = 1.0 if _has_contexts(protocol) else np.nan
    return {f"{column}_max": float(found.get(axis, otherwise)) for axis, column in AXES.items()}


def _has_contexts(protocol: str) -> bool:
    """Whether every form of a protocol says what an answer depends on; without that, contradictions are not found."""
    question = Query("", "", (0,), (0,))
    forms = registry.protocols.get(protocol).forms() if protocol in registry.protocols else ()
    return bool(forms) and all(form.context(question, 0) is not None for form in forms)


def _read_answers(folder: Folder) -> pd.DataFrame:
    """Answers of a cell without their texts; what was not recorded yet when a cell was run is NaN or empty.

    In cells from before it was recorded which records are about one subject, each record is a cluster of its own.
    """
    columns = ["protocol", "axis", "record_id", "probe", "score", "exact"]
    file = folder.path / "records.parquet"
    later: dict[str, Any] = {"scope": np.nan, "kind": "", "chain": ""}
    there = set(parquet.read_schema(file).names)
    rows = pd.read_parquet(file, columns=[*columns, *(name for name in later if name in there)])
    rows = rows.assign(**{name: default for name, default in later.items() if name not in there})
    rows.insert(0, "cell", folder.path.name)
    groups = folder.read("provenance.json").get("same_subject", [])
    first_of = {record: group[0] for group in groups for record in group}
    rows["cluster"] = [first_of.get(record, record) for record in rows["record_id"]]
    return rows


def _by_record(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of a cell by record: means over the record's probes on an axis."""
    rows = rows.assign(axis=rows["axis"].map(dict(AXES)))
    place = ["cell", "protocol", "axis", "record_id", "cluster"]
    return rows.groupby(place, as_index=False, sort=False)[["score", "exact"]].mean()


def _of_kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """The questions of the axes on which some have a kind."""
    with_kinds = set(rows.loc[rows["kind"] != "", "axis"])
    found = rows[rows["axis"].isin(with_kinds)].drop(columns="scope")
    return found.assign(axis=found["axis"].map(dict(AXES)))


def _by_question(rows: pd.DataFrame) -> pd.DataFrame:
    """The routing score of each question that has one; all protocols ask the same questions."""
    once = rows[rows["scope"].notna()].drop_duplicates(["axis", "record_id", "probe"])
    return once[["cell", "axis", "record_id", "cluster", "scope"]]


def _check_against_records(cells: pd.DataFrame, records: pd.DataFrame, store: Store) -> None:
    """Refuse a cell whose metrics contradict its records."""
    means = records.groupby(["cell", "protocol", "axis"])["score"].mean()
    for row in cells.to_dict("records"):
        for column in AXES.values():
            of_records = float(means.get((row["cell"], row["protocol"], column), np.nan))
            if not np.isclose(row[column], of_records, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"{row['cell']}: metrics.json has {row['protocol']} {column} = {row[column]:.4f}, "
                    f"its records have {of_records:.4f}",
                    fix=rerun(store.cell(row["cell"]).path),
                )


def _check_against_scopes(folder: Folder, scopes: pd.DataFrame) -> None:
    of_records = summary({str(axis): same["scope"].tolist() for axis, same in scopes.groupby("axis")})
    if folder.read("metrics.json").get("scope", {}) != of_records:
        raise UserError(
            f"{folder.path.name}: metrics.json and records.parquet disagree on the scope",
            fix=rerun(folder.path),
        )


def _refuse_duplicates(cells: pd.DataFrame) -> None:
    place = ["row", "model", "section", "template", "seed", "protocol"]
    duplicates = cells[cells.duplicated(place, keep=False)]
    if len(duplicates):
        first = duplicates.iloc[0]
        same = duplicates[(duplicates[place] == first[place]).all(axis=1)]["cell"]
        raise UserError(
            f"{' and '.join(same)} belong in the same row of a table ('{first['label']}' on {first['model']}) "
            "but have different settings",
            fix="give each method entry of the suite its own `label:`, and each folder of records a suite of its own",
        )


def _distinguish_models(cells: pd.DataFrame) -> None:
    """Give models that share a name distinct names and titles, by the settings in which they differ."""
    for name, same in list(cells.groupby("model_name")):
        settings = list(dict.fromkeys(same["model_settings"]))
        for one, what in zip(settings, _differences(settings), strict=True):
            if what:
                is_one = (cells["model_name"] == name) & (cells["model_settings"] == one)
                cells.loc[is_one, ["model", "model_title"]] += f" ({what})"


def _disambiguate(cells: pd.DataFrame, key: str, title: str, apart: Callable[[Sequence[str]], list[str]]) -> None:
    """Where several keys share a title, append to each what distinguishes it."""
    titles = dict(zip(cells[key], cells[title], strict=True))
    for shown in set(titles.values()):
        same = [name for name in titles if titles[name] == shown]
        if len(same) > 1:
            titles |= {name: f"{shown} ({what})" for name, what in zip(same, apart(same), strict=True)}
    cells[title] = cells[key].map(titles)


def _labels(rows: Sequence[str]) -> list[str]:
    return [row.partition("/")[0] for row in rows]


def _differences(sections: Sequence[str]) -> list[str]:
    """For each section, the settings in which they differ."""
    settings = [json.loads(section) for section in sections]
    differing = [key for key in settings[0] if len({json.dumps(other.get(key)) for other in settings}) > 1]
    return [", ".join(f"{key} {other.get(key)}" for key in differing) for other in settings]
