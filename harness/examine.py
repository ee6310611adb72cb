"""Content of `harness explain` and `harness answers`: one cell on one screen, and its answers one by one."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.commands import harness_command
from harness.errors import UserError, did_you_mean
from harness.evaluation.metrics import OTHER_KEYS
from harness.files import understood
from harness.plain_text import memory_size
from harness.store.answers import KEY, with_unedited
from harness.store.provenance import hparams_of
from harness.store.store import Folder, Store, only_cell
from harness.store.verdicts import read_verdicts, verdict_text

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("cell", "metrics", "cost", "provenance")
"""JSON files of a cell, in the order in which they are read."""

SETTINGS = 16
DIAGNOSTICS = 4
TRACEBACK = 8
"""Maximum number of lines of each kind that `explain` prints; `--json` has all of them."""

PER_LINE = 3
"""Scores on a line."""

COLUMNS = {
    "protocol": "protocol",
    "axis": "axis",
    "record_id": "record",
    "prompt": "prompt",
    "target": "target",
    "unedited": "unedited",
    "predicted": "edited",
    "score": "score",
}
"""Columns of `answers` with their headings; `verdict` follows if the cell has been judged."""


def find_cell(store: Store, name: str) -> Folder:
    """The one cell of a store that a name matches: a cell id or folder name, a prefix of either, or a path.

    Raises:
        UserError: if none or several match.
    """
    return store.cell(only_cell(store, name, store.cells()))


def read_parts(folder: Folder) -> dict[str, Any]:
    """All JSON files of a cell that exist, and why it failed if it did.

    Raises:
        UserError: if a file is damaged.
    """
    with understood(folder.path):
        found = {name: folder.read(f"{name}.json") for name in PARTS if (folder.path / f"{name}.json").is_file()}
    return {**found, **({"failed": folder.failure} if folder.failure is not None else {})}


# ── explain


def explain(folder: Folder) -> Iterator[str]:
    """A cell in at most 45 lines, which may be cut off at the width of the screen.

    Raises:
        UserError: if a file is damaged or lacks what every cell has.
    """
    parts = read_parts(folder)
    with understood(folder.path):
        yield from _heading(folder, parts)
        if cell := parts.get("cell"):
            yield from _identity(cell, parts.get("provenance", {}))
        yield from _scores(parts.get("metrics", {}))
        if cost := parts.get("cost"):
            yield from _cost(cost)
        if origin := parts.get("provenance"):
            yield from _origin(origin)
        yield from _failure(folder)
    yield f"files      {folder.path}"


def _heading(folder: Folder, parts: Mapping[str, Any]) -> Iterator[str]:
    state = "done" if folder.is_done else "failed" if folder.failure is not None else "not finished"
    yield f"{folder.path.name}: {state}"
    if folder.failure is not None:
        yield f"reason     {folder.failure.splitlines()[0]}"
    if "cell" not in parts:
        yield "cell.json  missing"


def _identity(cell: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    method, model, data = cell["method"], cell["model"], cell["data"]
    variant = f", variant {method['variant']}" if method.get("variant") else ""
    yield f"method     {method['title']} ({method['name']} version {method['version']}, {method['backend']}{variant})"
    settings, sources = hparams_of(cell, origin), dict(method.get("sources", {}))
    for key in origin.get("chosen", {}):
        sources[key] = f"decided by {_setting((key, method['hparams'][key]))}; {sources.get(key, '')}"
    width = max((len(_setting(item)) for item in settings.items()), default=0)
    for item in itertools.islice(settings.items(), SETTINGS):
        yield f"           {_setting(item):{min(width, 40)}}  {sources.get(item[0], '')}".rstrip()
    if len(settings) > SETTINGS:
        yield f"           and {len(settings) - SETTINGS} more settings: --json"
    of_model = [model["title"], model.get("weights", ""), model.get("dtype", ""), _hash(model.get("sha256"))]
    yield f"model      {model['name']}: {', '.join(filter(None, of_model))}"
    pools = [f"{data[pool]} {pool}" for pool in ("train", "unrelated") if data.get(pool)]
    template = f"prompt template {data['template']}" if data["template"] != "none" else ""
    of_data = [f"{data['edits']} edits of {data['split']}", *pools, template, _hash(data["sha256"])]
    yield f"data       {data['name']}: {', '.join(filter(None, of_data))}"
    schedule = ", ".join(f"{key} {value}" for key, value in cell["schedule"].items() if key != "kind")
    yield f"run        {cell['schedule']['kind']}{f' ({schedule})' if schedule else ''}, seed {cell['seed']}, " + (
        f"{cell['eval_batch']} rows per forward pass"
    )


def _setting(item: tuple[str, Any]) -> str:
    return f"{item[0]} = {json.dumps(item[1], ensure_ascii=False)}"


def _hash(sha256: str | None) -> str:
    return f"sha256 {sha256[:12]}" if sha256 else ""


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Two lines per protocol at most, and a few diagnostics."""
    for protocol, axes in metrics.items():
        if protocol in OTHER_KEYS:
            continue
        shown = [f"{axis} {found['score']:.3f} (n {found['n']})" for axis, found in axes.items()]
        for start in range(0, len(shown), PER_LINE):
            named = ("scores", protocol) if start == 0 else ("", "")
            yield f"{named[0]:<10} {named[1]:<15} {', '.join(shown[start : start + PER_LINE])}"
    if classic := metrics.get("classic"):
        yield f"           {'probabilities':<15} {', '.join(f'{name} {value:.3f}' for name, value in classic.items())}"
    if fluency := metrics.get("fluency"):
        yield f"           {'fluency':<15} {', '.join(f'{name} {value:.3f}' for name, value in fluency.items())}"
    for edits, tasks in metrics.get("capability", {}).items():
        shown = [
            f"{task} {name} {value:.3f}"
            for task, found in tasks.items()
            for name, value in found.items()
            if name != "n"
        ]
        side = f"after {edits} edits" if int(edits) else "unedited"
        for start in range(0, len(shown), PER_LINE):
            yield f"           {side if start == 0 else '':<15} {', '.join(shown[start : start + PER_LINE])}"
    if "curve" in metrics:
        yield f"           also after {', '.join(sorted(metrics['curve'], key=int))} edits: --json"
    diagnostics = list(metrics.get("diagnostics", {}).items())
    shown = [f"{name} {value:.4g}" for name, value in diagnostics[:DIAGNOSTICS]]
    more = [f"and {len(diagnostics) - DIAGNOSTICS} more: --json"] * (len(diagnostics) > DIAGNOSTICS)
    if shown:
        yield f"edit       {', '.join([*shown, *more])}"


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in cost["phases_s"].items())
    yield f"time       {phases or 'none measured'}"
    own, whole = (memory_size(cost.get(name)) for name in ("peak_memory_bytes", "peak_memory_with_artifacts_bytes"))
    yield f"memory     at most {own}; with building its artifacts: {whole}"
    doubt = "" if cost["citable"] else "; not citable: it was interrupted"
    yield f"device     {cost['device_class']}{doubt}"


def _origin(origin: Mapping[str, Any]) -> Iterator[str]:
    commit = (origin.get("commit") or "no commit")[:12] + (", with uncommitted changes" if origin.get("dirty") else "")
    ended = f" at {origin['finished'][:19]}" if "finished" in origin else ""
    yield f"computed   by {commit}{ended} on {origin['host']}, Python {origin['python']}"
    yield f"command    {origin['command']}"


def _failure(folder: Folder) -> Iterator[str]:
    """The end of the log of a failed cell."""
    log = folder.path / "log.txt"
    if folder.failure is not None and log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        yield f"log        {log}, which ends with"
        yield from (f"           {line}" for line in lines[-TRACEBACK:])


# ── answers


@dataclass(frozen=True, slots=True)
class Wanted:
    """Filters for the answers of a cell; an empty filter accepts all.

    Attributes:
        wrong: only those that differ from what is compared: the target or, for locality, the unedited model's answer.
        axis, record, protocol: names.
    """

    wrong: bool = False
    axis: str = ""
    record: str = ""
    protocol: str = ""


def answers(store: Store, folder: Folder, wanted: Wanted) -> "pd.DataFrame":
    """Answers of a finished cell, next to those of the unedited model.

    Returns:
        The columns of `harness.records.Answer`, and `unedited`: the answer to the same question in a cell of this store with
        the unedited model; None if there is no such cell. For a cell that has been judged, also `verdicts`: by judge, what it
        was asked, what it replied, and the verdict.

    Raises:
        UserError: if the cell is not finished, a file is damaged, or a name to filter by does not occur.
    """
    if not folder.is_done:
        fix = harness_command("explain" if folder.failure is not None else "logs", folder.path.name, store=store.root)
        raise UserError(f"{folder.path}: no answers, because the cell is not finished", fix=fix)
    rows = _with_verdicts(with_unedited(store, folder), folder)
    for column, name in (("protocol", wanted.protocol), ("axis", wanted.axis), ("record_id", wanted.record)):
        if name:
            rows = rows[rows[column] == _known(name, column, list(rows[column].unique()), folder)]
    return rows[rows["exact"] < 1] if wanted.wrong else rows


def headings(rows: "pd.DataFrame") -> tuple[str, ...]:
    """Headings of the columns of `plain_rows`."""
    return (*COLUMNS.values(), *["verdict"] * ("verdicts" in rows))


def plain_rows(rows: "pd.DataFrame") -> list[tuple[str, ...]]:
    """The columns of `COLUMNS` as text on one line each, and the verdicts if there are any."""
    plain = []
    for row in rows.to_dict("records"):
        texts = [_text(row[column]) for column in COLUMNS]
        if "verdicts" in row:
            texts.append(_verdicts_shown(row["verdicts"]))
        plain.append(tuple(map(_one_line, texts)))
    return plain


def as_records(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """The same for JSON, where a number that does not apply is null."""
    return [
        {str(name): None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in rows.to_dict("records")
    ]


def _with_verdicts(rows: "pd.DataFrame", folder: Folder) -> "pd.DataFrame":
    import pandas as pd

    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in read_verdicts(folder).to_dict("records"):
        said = {"verdict": verdict_text(row["verdict"]), "prompt": row["judge_prompt"], "reply": row["judge_reply"]}
        found.setdefault(tuple(row[name] for name in KEY), {})[row["judge"]] = said
    if not found:
        return rows
    keys = zip(*(rows[name] for name in KEY), strict=True)
    return rows.assign(verdicts=pd.Series([found.get(key, {}) for key in keys], rows.index, dtype=object))


def _verdicts_shown(verdicts: Mapping[str, Any]) -> str:
    """The verdict of the only judge, or those of several with their names."""
    shown = {judge: said["verdict"] or "none" for judge, said in verdicts.items()}
    if len(shown) > 1:
        return "; ".join(f"{judge}: {verdict}" for judge, verdict in shown.items())
    return next(iter(shown.values()), "–")


def _known(name: str, column: str, known: Sequence[str], folder: Folder) -> str:
    if name in known:
        return name
    raise UserError(
        f"{folder.path.name}: no answers with {column.removesuffix('_id')} '{name}'{did_you_mean(name, known)}; "
        f"there are {', '.join(known[:8])}{', …' * (len(known) > 8)}",
        fix=harness_command(
            "answers", folder.path.name, store=folder.path.parents[1], **{column.removesuffix("_id"): known[0]}
        ),
    )


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    """Line breaks and tabs become visible, so that a row is one line and a tab separates columns."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
