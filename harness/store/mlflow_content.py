"""Content of a cell's run in MLflow: name, tags, params and metrics, read from the cell's folder.

Params are what runs of a suite differ in, with hyper-parameters under their method's name (`rome.v_lr`); tags say what a run
is and where it comes from; metrics are measured, with plain names (`generation.score`, `edit_s`, `flops.edit`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from harness.store.mlflow_names import flattened, valid_names
from harness.store.provenance import hparams_of
from harness.store.store import Folder

AVERAGED = ("reliability", "generality", "locality")
"""Axes whose mean is the score."""

SCORE = "score"
COMPARED = ("freq", "edit_s", "edit_time_vs_onceedit", "time_from_scratch_vs_onceedit", "flops.edit")
"""Metrics of a method that the suite's run repeats, besides its scores; the method's own run has all of them."""

WITHIN_LINE = ("model", "dtype", "template", "seed")
"""Settings in which the cells of one line of a table may differ."""

_PARAM_LENGTH = 6000
_NOT_SETTINGS = ("name", "title", "sha256")
"""Entries of a cell's `data` that are no params, or that have another name there."""
_SIZES = ("n",)
"""Entries of metrics.json that are numbers of answers."""

_PEAKS = ("peak_memory_bytes", "peak_memory_with_artifacts_bytes")
_LOGGED = ("scope", "diagnostics", "classic", "fluency")
_ABOUT = (*_LOGGED, "curve", "attainable", "capability")
"""Entries of metrics.json that are not protocols; the first are logged as they are."""

Value = TypeVar("Value")
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named(Generic[Value]):
    """Values by names that MLflow accepts; `renamed` has the original of each name that it would have refused."""

    values: dict[str, Value]
    renamed: dict[str, str]

    @classmethod
    def of(cls, leaves: Mapping[Path, Value]) -> "Named[Value]":
        """Name values by their path."""
        names = valid_names(leaves, ".")
        renamed = {name: ".".join(path) for path, name in names.items() if name != ".".join(path)}
        return cls({names[path]: value for path, value in leaves.items()}, renamed)


def run_names(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """`ROME · Llama2-7B · ZsRE` for each cell.json of a suite, followed by what distinguishes it from the others."""
    named = distinct([_run_name(cell) for cell in cells.values()], [settings(cell) for cell in cells.values()], " · ")
    return dict(zip(cells, named, strict=True))


def distinct(names: Sequence[str], about: Sequence[Mapping[str, str]], separator: str) -> list[str]:
    """The names; those that are equal are followed by the settings in which they differ.

    Args:
        names: one per run.
        about: the settings of each.
        separator: between a name and each setting, `train 64`.
    """
    alike: dict[str, list[Mapping[str, str]]] = {}
    for name, of_one in zip(names, about, strict=True):
        alike.setdefault(name, []).append(of_one)
    return [
        separator.join(
            [name]
            + [f"{key} {value}" for key, value in of_one.items() if any(each.get(key) != value for each in alike[name])]
        )
        for name, of_one in zip(names, about, strict=True)
    ]


def _run_name(cell: Mapping[str, Any]) -> str:
    method, data = cell["method"], cell["data"]
    label, variant = cell["label"], method.get("variant")
    is_plain = label in (method["name"], f"{method['name']}.{variant}")
    title = f"{method['title']} ({variant})" if variant and is_plain else method["title"] if is_plain else label
    others = [f"prompt {data['template']}"] * (data["template"] != "none") + [f"seed {cell['seed']}"] * (
        cell["seed"] != 0
    )
    return " · ".join([title, cell["model"]["title"], data["title"], *others])


def settings(cell: Mapping[str, Any]) -> dict[str, str]:
    """The params of a cell that are not hyper-parameters.

    Args:
        cell: the content of cell.json.
    """
    return Named.of(_cut(_settings(cell))).values


def params(cell: Mapping[str, Any], origin: Mapping[str, Any]) -> Named[str]:
    """The settings in which a cell may differ from others; long values are cut.

    Args:
        cell: the content of cell.json.
        origin: that of provenance.json.
    """
    return Named.of(_cut({**_settings(cell), **flattened(hparams_of(cell, origin), cell["method"]["name"])}))


def _settings(cell: Mapping[str, Any]) -> dict[Path, Any]:
    method, data = cell["method"], cell["data"]
    named = {
        "method": method["name"],
        "label": cell["label"],
        "variant": method["variant"],
        "backend": method["backend"],
        "model": cell["model"]["name"],
        "dtype": cell["model"].get("dtype"),
        "dataset": data["name"],
        **{name: value for name, value in data.items() if name not in _NOT_SETTINGS},
        "seed": cell["seed"],
    }
    leaves: dict[Path, Any] = {(name,): value for name, value in named.items() if value is not None}
    return {**leaves, **flattened(cell["schedule"], "schedule")}


def _cut(leaves: Mapping[Path, Any]) -> dict[Path, str]:
    return {path: cut(str(value), _PARAM_LENGTH) for path, value in leaves.items()}


def metrics(folder: Folder) -> Named[float]:
    """Measurements of a cell after the last edit; numbers that are not finite are left out."""
    measured, cost = folder.read("metrics.json"), folder.read("cost.json")
    leaves = dict(_scores(measured))
    leaves |= {(f"{phase}_s",): seconds for phase, seconds in cost["phases_s"].items()}
    leaves |= flattened({key: value for key, value in cost.get("flops", {}).items() if key != "sample_edits"}, "flops")
    leaves |= {(name,): cost.get(name) for name in _PEAKS}
    for part in _LOGGED:
        leaves |= flattened(measured.get(part, {}), part)
    if points := measured.get("capability"):
        leaves |= flattened(points[max(points, key=int)], "capability")
    return Named.of({path: float(value) for path, value in leaves.items() if is_finite(value)})


def curve(folder: Folder) -> dict[int, dict[str, float]]:
    """Scores along a sequence by the number of edits, named as those after the last edit; `retained` has the first edits'."""
    points: Mapping[str, Mapping[str, Any]] = folder.read("metrics.json").get("curve", {})
    found = {}
    for edits, point in points.items():
        kept = {(*path[:1], "retained", *path[1:]): value for path, value in _scores(point.get("retained", {}))}
        leaves = {**dict(_scores({key: value for key, value in point.items() if key != "retained"})), **kept}
        found[int(edits)] = Named.of({path: float(value) for path, value in leaves.items() if is_finite(value)}).values
    return found


def cut(text: str, length: int) -> str:
    """The text, or its beginning if it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def is_finite(value: Any) -> bool:
    """Whether a value is a number that MLflow can plot."""
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:  # an integer beyond any float
        return False


def _scores(measured: Mapping[str, Any]) -> Iterator[tuple[Path, float]]:
    """`<protocol>.<axis>` for its score, `<protocol>.<axis>.exact` and so on, and `<protocol>.score` for the mean."""
    for protocol, axes in measured.items():
        if protocol in _ABOUT:
            continue
        for axis, entry in axes.items():
            for name, value in entry.items():
                if name not in _SIZES:
                    yield (protocol, axis) if name == SCORE else (protocol, axis, name), value
        if all(axis in axes for axis in AVERAGED):
            yield (protocol, SCORE), sum(axes[axis][SCORE] for axis in AVERAGED) / len(AVERAGED)


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method on one dataset over all models: a run of its own, next to those of its cells.

    Attributes:
        key: identifies it within its suite.
        name: of the run.
        params: `settings` that its cells share, with a label and a dataset.
        metrics: `<protocol>.score`, `freq`, times and FLOPs.
    """

    key: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    def compared(self) -> dict[str, float]:
        """The metrics that compare methods at a glance, for the run of the suite: Score, Freq and totals."""
        return {name: value for name, value in self.metrics.items() if name.endswith(f".{SCORE}") or name in COMPARED}


@dataclass(frozen=True, slots=True)
class SuiteSummary:
    """What takes several cells to know.

    Attributes:
        cells: further metrics of cells, by folder.
        methods: one per method and dataset.
        description: Markdown.
    """

    cells: Mapping[str, Mapping[str, float]]
    methods: tuple[MethodSummary, ...]
    description: str = ""


NO_SUMMARY = SuiteSummary({}, ())
