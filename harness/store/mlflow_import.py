"""Writes the runs of one store into MLflow: a parent run per suite, and child runs for its methods and cells."""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import explained, understood
from harness.identity import digest, file_digest
from harness.store.manifest import Manifest
from harness.store.mlflow_address import is_database, mlflow_error
from harness.store.mlflow_content import (
    MethodSummary,
    Named,
    SuiteSummary,
    curve,
    cut,
    distinct,
    is_finite,
    metrics,
    params,
    run_names,
)
from harness.store.mlflow_moved import ARTIFACTS, redirect
from harness.store.mlflow_view import view_state, view_tag
from harness.store.store import Folder, Store

if TYPE_CHECKING:
    import pandas as pd

FILES = ("records.parquet", "cell.json", "metrics.json", "cost.json", "provenance.json", "log.txt")
CURVE = "curve.parquet"
"""Files of a cell that become artifacts of its run, and the one that only sequential cells have."""

_TAGS_PER_BATCH = 100
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_TAG_LENGTH = 5000
_SOURCE_LENGTH = 65535
_DIGEST_LENGTH = 36
_VERSION = 4
"""Increment when cells are to be imported again, because their runs look different."""
_ANSWERS = 1000
"""Answers in the table of a run; records.parquet, an artifact next to it, has all."""

_MODEL_NAME = re.compile(r"[^\w\- ]+")
"""Characters that MLflow refuses in the name of a model."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the runs of a suite at a scale are: its name, the id of its experiment, that of the parent run."""

    suite: str
    experiment: str
    parent: str


class Importer:
    """A connection to MLflow that imports the suites of one store.

    Raises:
        UserError: if MLflow cannot open the address.
    """

    def __init__(self, store: Store, uri: str) -> None:
        import mlflow

        self._store = store
        self.refused: dict[str, str] = {}
        self.experiments: list[str] = []
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._client.search_experiments(
                max_results=1
            )  # the first request: is there a server, and does it let us in?
        except Exception as error:
            raise mlflow_error(uri, error) from error
        self._uri = uri
        self._is_own = uri == own_database(store.root)
        self._origin = cut(_origin(store.root), _TAG_LENGTH)
        self._artifacts: str | None = None
        if is_database(uri):
            self._artifacts = (store.root / ARTIFACTS).resolve().as_uri()
            redirect(self._client, uri, self._artifacts, is_own=self._is_own)

    def suite(self, manifest: Manifest, summary: SuiteSummary) -> Iterator[str]:
        """Import one suite; yield `created`, `replaced` or `skipped` per finished cell, `removed` per cell that it lacks now."""
        experiment = self._experiment(manifest.suite)
        self.experiments.append(experiment)
        place = _Place(manifest.suite, experiment, self._parent(experiment, manifest))
        known = self._children(place)
        is_changed = self._client.get_run(place.parent).info.status != "FINISHED"
        cells = {name: _described(folder) for name in manifest.cells if (folder := self._store.cell(name)).is_done}
        called = run_names(cells)
        for name, cell in cells.items():
            try:
                more = summary.cells.get(name, {})
                outcome = self._cell(place, self._store.cell(name), cell, called[name], known.get(name, []), more)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                self.refused[name] = mlflow_error("", error).message.partition("error: ")[2]
                continue
            is_changed |= outcome != "skipped"
            yield outcome
        for method in summary.methods:
            is_changed |= self._method(place, method, known.get(method.key, []))
        current = {*cells, *(method.key for method in summary.methods)}
        for run in (run for key, runs in known.items() if key not in current for run in runs):
            self._client.delete_run(run.info.run_id)
            is_changed = True
            if run.data.tags["kind"] == "cell":
                yield "removed"
        is_changed |= self._overview(place, manifest, summary)
        if is_changed:
            self._client.set_terminated(place.parent)

    def _experiment(self, name: str) -> str:
        """Id of the experiment for all scales of a suite."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _parent(self, experiment: str, manifest: Manifest) -> str:
        """Id of this store's parent run of a suite at a scale, with up-to-date tags."""
        from mlflow.entities import RunTag

        name = manifest.name
        facts = {key: cut(str(getattr(manifest, key)), _TAG_LENGTH) for key in ("suite", "scale", "command", "created")}
        facts |= {"kind": "suite", "suite_run": name, "store": self._origin, **_source(manifest.suite)}
        ours = filter(self._is_ours, self._client.search_runs([experiment], f"tags.suite_run = '{name}'"))
        run = next(ours, None) or self._client.create_run(experiment, run_name=name, tags=facts)
        changed = {key: value for key, value in facts.items() if run.data.tags.get(key) != value}
        if changed:
            self._client.log_batch(run.info.run_id, tags=[RunTag(*fact) for fact in changed.items()])
        return str(run.info.run_id)

    def _children(self, place: _Place) -> dict[str, list[Any]]:
        """This store's child runs of a parent by the folder of their cell or the key of their method, finished or not."""
        known: dict[str, list[Any]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [place.experiment],
                f"tags.`mlflow.parentRunId` = '{place.parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in filter(self._is_ours, page):
                known.setdefault(run.data.tags.get("cell", run.info.run_name), []).append(run)
            token = page.token
            if not token:
                return known

    def _is_ours(self, run: Any) -> bool:
        """Whether a run was imported from this store: a server may have runs of several stores, and of users."""
        return "kind" in run.data.tags and (self._is_own or run.data.tags.get("store") == self._origin)

    def _cell(
        self,
        place: _Place,
        folder: Folder,
        cell: Mapping[str, Any],
        name: str,
        earlier: Sequence[Any],
        more: Mapping[str, float],
    ) -> str:
        with understood(folder.path):
            fingerprint = _fingerprint(folder, name, more)
        if [_is_whole(run, fingerprint) for run in earlier] == [True]:
            return "skipped"
        for run in earlier:
            self._client.delete_run(run.info.run_id)
        self._import(place, folder, cell, name, fingerprint, more)
        return "replaced" if earlier else "created"

    def _import(
        self,
        place: _Place,
        folder: Folder,
        cell: Mapping[str, Any],
        name: str,
        fingerprint: str,
        more: Mapping[str, float],
    ) -> None:
        """Write one cell as one run, which becomes FINISHED only once it is complete."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        with understood(folder.path):
            origin, cost, data = folder.read("provenance.json"), folder.read("cost.json"), cell["data"]
            started_ms, finished_ms = _milliseconds(origin["started"]), _milliseconds(origin["finished"])
            tags = {
                "mlflow.parentRunId": place.parent,
                **_source(place.suite, origin["commit"]),
                "command": cut(origin["command"], _TAG_LENGTH),
                "kind": "cell",
                "store": self._origin,
                "cell": folder.path.name,
                "cell_id": cell["cell_id"],
                "fingerprint": fingerprint,
                "commit": str(origin["commit"]),
                "dirty": str(origin["dirty"]),
                "data_sha256": data["sha256"],
                "method_version": str(cell["method"]["version"]),
                "device_class": cost["device_class"],
                "citable": str(cost["citable"]),
                "edit_runs": cut(" ".join(cost["edit_actions"]), _TAG_LENGTH),
            }
            settled, scored = params(cell, origin), metrics(folder)
            last = int(data["edits"]) if cell["schedule"]["kind"] == "sequential" else 0
            numbers = [
                Metric(key, value, finished_ms, last) for key, value in {**scored.values, **_finite(more)}.items()
            ]
            numbers += [
                Metric(key, value, finished_ms, edits)
                for edits, point in curve(folder).items()
                for key, value in point.items()
                if edits != last or key not in scored.values
            ]
            originals = {**_originals("param", settled), **_originals("metric", scored)}
            source = cut(json.dumps(origin["data_files"]), _SOURCE_LENGTH)
            used = Dataset(data["name"], data["sha256"][:_DIGEST_LENGTH], source_type="local", source=source)
            answers = _answers(folder)
        run = self._client.create_run(place.experiment, start_time=started_ms, run_name=name, tags=tags)
        run_id = run.info.run_id
        try:
            self._log(run_id, originals, settled.values, numbers)
            self._client.log_inputs(run_id, [DatasetInput(used, [InputTag("mlflow.data.context", data["split"])])])
            if cost["edit_actions"]:
                self._link_model(place.experiment, run_id, cell, cost["edit_actions"][-1])
            with self._uploading():
                for file in _artifacts(folder):
                    self._client.log_artifact(run_id, str(file))
                self._client.log_table(run_id, answers, "answers.json")
        except Exception as error:
            if _is_refusal(error):
                self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, end_time=finished_ms)

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """Turn any error inside into that of MLflow: where artifacts are kept, many packages and file systems may fail."""
        try:
            with explained(self._store.root):
                yield
        except Exception as error:
            if isinstance(error, UserError) or _is_refusal(error):
                raise
            raise mlflow_error(self._uri, error) from error

    def _log(
        self, run_id: str, tags: Mapping[str, str], settings: Mapping[str, str], numbers: Sequence[Any] = ()
    ) -> None:
        """Log tags, params and metrics, as many at a time as MLflow takes."""
        from mlflow.entities import Param, RunTag

        for batch in _batches([RunTag(*tag) for tag in tags.items()], _TAGS_PER_BATCH):
            self._client.log_batch(run_id, tags=batch)
        for batch in _batches([Param(*setting) for setting in settings.items()], _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=batch)
        for batch in _batches(numbers, _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=batch)

    def _link_model(self, experiment: str, run_id: str, cell: Mapping[str, Any], edit_run: str) -> None:
        """Make the edited model of a cell an output of its run: one for each edit run, whichever cells share it."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        found = self._client.search_logged_models([experiment], f"tags.edit_run = '{edit_run}'", max_results=1)
        if found:
            model_id = found[0].model_id
        else:
            of_one = [cell["model"]["title"]] if edit_run.startswith(cell["cell_id"]) else []
            name = "-".join([cell["label"], *of_one, cell["data"]["name"], edit_run[:8]])
            made = self._client.create_logged_model(
                experiment,
                name=_MODEL_NAME.sub("-", name),
                source_run_id=run_id,
                tags={"edit_run": edit_run},
                params={"method": cell["method"]["name"], "dataset": cell["data"]["name"]},
                model_type="edited model",
            )
            model_id = made.model_id
            self._client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])

    def _method(self, place: _Place, method: MethodSummary, earlier: Sequence[Any]) -> bool:
        """Write one method as one run; return whether it was new or different."""
        from mlflow.entities import Metric

        numbers = _finite(method.metrics)
        fingerprint = digest({"version": _VERSION, "params": dict(method.params), "metrics": numbers}, 32)
        if [_is_whole(run, fingerprint) for run in earlier] == [True]:
            return False
        for run in earlier:
            self._client.delete_run(run.info.run_id)
        tags = {
            "mlflow.parentRunId": place.parent,
            "kind": "method",
            "store": self._origin,
            "cell": method.key,
            "fingerprint": fingerprint,
        }
        run = self._client.create_run(place.experiment, run_name=method.name, tags=tags)
        logged = [Metric(name, value, run.info.start_time, 0) for name, value in numbers.items()]
        self._log(run.info.run_id, {}, method.params, logged)
        self._client.set_terminated(run.info.run_id)
        return True

    def _overview(self, place: _Place, manifest: Manifest, summary: SuiteSummary) -> bool:
        """Give the parent run what compares the methods, the reports and a description; return whether any is new."""
        from mlflow.entities import Metric

        reports = self._store.root / "reports" / manifest.name
        files = sorted(file for file in reports.glob("*") if file.is_file()) if reports.is_dir() else []
        about = [method.params for method in summary.methods]
        several = len({each["dataset"] for each in about}) > 1
        lines = [".".join([each["label"], *([each["dataset"]] if several else [])]) for each in about]
        numbers: dict[str, float] = {"cells": sum(self._store.cell(name).is_done for name in manifest.cells)}
        for method, line in zip(summary.methods, distinct(lines, about, "."), strict=True):
            numbers |= {f"{name}.{line}": value for name, value in _finite(method.compared()).items()}
        content = {
            "version": _VERSION,
            "metrics": numbers,
            "files": {file.name: file_digest(file) for file in files},
            "description": summary.description,
        }
        fingerprint = digest(content, 32)
        run = self._client.get_run(place.parent)
        found = Named.of({(name,): value for name, value in numbers.items()})
        named = found.values
        shown = {name: value for name, value in run.data.metrics.items() if not math.isnan(value)}
        if run.data.tags.get("fingerprint") == fingerprint and shown == named:
            return False
        gone = dict.fromkeys(shown.keys() - named.keys(), math.nan)  # a metric cannot be deleted
        now = int(time.time() * 1000)  # of two values with the same time, MLflow shows the higher one
        logged = [Metric(name, value, now, 0) for name, value in {**named, **gone}.items()]
        self._log(place.parent, _originals("metric", found), {}, logged)
        with self._uploading():
            for file in files:
                self._client.log_artifact(place.parent, str(file), "reports")
        state = view_state(self._protocols(manifest))
        self._client.set_experiment_tag(place.experiment, view_tag(), state)
        note = {"mlflow.note.content": cut(summary.description, _TAG_LENGTH)} if summary.description else {}
        self._log(place.parent, {**note, "fingerprint": fingerprint}, {})
        return True

    def _protocols(self, manifest: Manifest) -> Sequence[str]:
        """The protocols of a suite's finished cells."""
        done = (folder for name in manifest.cells if (folder := self._store.cell(name)).is_done)
        return list(dict.fromkeys(name for folder in done for name in folder.read("cell.json")["protocols"]))


def _origin(store: Path) -> str:
    """What tells a store from others that import into one server: the same on all nodes that share its file system."""
    return f"{store.resolve()} (inode {store.stat().st_ino})"


def _described(folder: Folder) -> dict[str, Any]:
    with understood(folder.path):
        found: dict[str, Any] = folder.read("cell.json")
        return found


def _originals(kind: str, named: Named[Any]) -> dict[str, str]:
    """Tags with the names of params or metrics before MLflow's rules changed them."""
    return {f"{kind}.{name}": cut(original, _TAG_LENGTH) for name, original in named.renamed.items()}


def _source(suite: str, commit: str = "") -> dict[str, str]:
    """The tags that MLflow shows as a run's source; of a command line it would only show the part after the last slash."""
    tags = {"mlflow.source.name": cut(suite, _TAG_LENGTH), "mlflow.source.type": "LOCAL"}
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if is_finite(value)}


def _answers(folder: Folder) -> "pd.DataFrame":
    """The first answers of a cell, for a table."""
    import pandas as pd

    columns = ["protocol", "axis", "record_id", "probe", "prompt", "target", "predicted", "score"]
    return pd.read_parquet(folder.path / FILES[0], columns=columns).head(_ANSWERS)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow does not accept a value, which says nothing about the next cell."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def _fingerprint(folder: Folder, name: str, more: Mapping[str, float]) -> str:
    """Hash of what is imported; it changes when a cell is rerun, or one that it is compared with."""
    files = {file.name: file_digest(file) for file in _artifacts(folder)}
    return digest({"version": _VERSION, "name": name, "files": files, "more": _finite(more)}, 32)


def _artifacts(folder: Folder) -> list[Path]:
    has_curve = (folder.path / CURVE).is_file()
    return [folder.path / name for name in (*FILES, *([CURVE] if has_curve else []))]


def _is_whole(run: Any, fingerprint: str) -> bool:
    """Whether a run is a complete import of the cell's current content."""
    return bool(run.info.status == "FINISHED" and run.data.tags.get("fingerprint") == fingerprint)


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def own_database(store: Path) -> str:
    """Address of the database of a store."""
    return f"sqlite:///{(store / 'mlflow.db').resolve()}"
