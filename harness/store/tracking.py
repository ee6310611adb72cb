"""Import finished cells into MLflow: a suite becomes a parent run, a cell a child run. The import is repeatable.

MLflow is written through `MlflowClient` with explicit run ids, never through the active run, so that `MLFLOW_RUN_ID` or
another run in the environment cannot redirect a cell. Only one process writes at a time, because concurrent migrations
corrupt a fresh SQLite file.
"""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.commands import harness_command, same_command
from harness.errors import UserError, did_you_mean
from harness.files import explained, locked, understood
from harness.identity import digest, file_digest
from harness.store.manifest import Manifest, manifests
from harness.store.mlflow_address import is_database, mlflow_error, patient, shown
from harness.store.mlflow_moved import ARTIFACTS, redirect
from harness.store.mlflow_names import flattened, valid_names
from harness.store.store import Folder, Store

FILES = ("records.parquet", "cell.json", "metrics.json", "cost.json", "provenance.json", "log.txt")
CURVE = "curve.parquet"
"""Files of a cell that become artifacts of its run, and the one that only sequential cells have."""

_TAGS_PER_BATCH = 100
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000
_SOURCE_LENGTH = 65535
_DIGEST_LENGTH = 36

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class SyncResult:
    """Result of a sync, as numbers of cells.

    Attributes:
        created: imported for the first time.
        replaced: imported again, because the cell was rerun or its import was interrupted.
        skipped: already imported and unchanged.
        refused: cells that MLflow does not accept, with the reason.
        uri: address of the MLflow server or database, without user name and password.
    """

    created: int
    replaced: int
    skipped: int
    refused: tuple[tuple[str, str], ...]
    uri: str

    @property
    def ui_command(self) -> str:
        """Command or address to view the runs."""
        return f"mlflow ui --backend-store-uri {self.uri}" if is_database(self.uri) else self.uri


@dataclass(frozen=True, slots=True)
class Named(Generic[Value]):
    """Values by names that MLflow accepts; `renamed` has the original of each name that it would have refused."""

    values: dict[str, Value]
    renamed: dict[str, str]


def sync(store: Path, suite: str | None = None, tracking_uri: str | None = None) -> SyncResult:
    """Import all finished cells of one suite or of all suites in the store; repeating it changes nothing.

    Args:
        store: folder of the store.
        suite: name of a suite, for all its scales, or of a manifest; None for all suites.
        tracking_uri: MLflow tracking URI; default `MLFLOW_TRACKING_URI`, otherwise `mlflow.db` in the store.

    Raises:
        UserError: if nothing was run, another sync is running, or MLflow is unreachable or reports an error.
    """
    chosen = _manifests(store, suite)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _database(store)
    with patient(uri), explained(store), _only_writer(store):
        importer = _Importer(Store(store), uri)
        counts = Counter(outcome for manifest in chosen for outcome in importer.suite(manifest))
    return SyncResult(
        counts["created"], counts["replaced"], counts["skipped"], tuple(importer.refused.items()), shown(uri)
    )


def params(cell: Mapping[str, Any], chosen: Mapping[str, Any]) -> Named[str]:
    """Flatten a cell's settings into MLflow params, the columns of its run table; a long value is cut.

    Args:
        cell: the content of cell.json.
        chosen: values of hyper-parameters that artifacts decided, shown as `chosen.<name>`.
    """
    method, data = cell["method"], cell["data"]
    named = {
        "label": cell["label"],
        "method": method["name"],
        "variant": str(method["variant"]),
        "backend": method["backend"],
        "method_version": str(method["version"]),
        "model": cell["model"]["name"],
        "dataset": data["name"],
        "edits": str(data["edits"]),
        "split": data["split"],
        "template": data["template"],
        "seed": str(cell["seed"]),
        "cell_id": cell["cell_id"],
    }
    leaves = {
        **flattened(cell["schedule"], "schedule"),
        **flattened(method["hparams"], "hparams"),
        **flattened(chosen, "chosen"),
    }
    names = valid_names([*((name,) for name in named), *leaves], ".")
    values: dict[tuple[str, ...], Any] = {(name,): value for name, value in named.items()} | leaves
    return Named({names[path]: _cut(str(value), _PARAM_LENGTH) for path, value in values.items()}, _renamed(names, "."))


def metrics(folder: Folder) -> Named[float]:
    """Flatten all finite numbers of metrics.json and cost.json."""
    leaves = {**flattened(folder.read("metrics.json")), **flattened(folder.read("cost.json"), "cost")}
    numbers = {path: value for path, value in leaves.items() if _is_finite(value)}
    names = valid_names(numbers, "/")
    return Named({names[path]: float(value) for path, value in numbers.items()}, _renamed(names, "/"))


class _Importer:
    """A connection to MLflow that imports the suites of one store.

    Raises:
        UserError: if MLflow cannot open the address.
    """

    def __init__(self, store: Store, uri: str) -> None:
        import mlflow

        self._store = store
        self.refused: dict[str, str] = {}
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._client.search_experiments(
                max_results=1
            )  # the first request: is there a server, and does it let us in?
        except Exception as error:
            raise mlflow_error(uri, error) from error
        self._artifacts: str | None = None
        if is_database(uri):
            self._artifacts = (store.root / ARTIFACTS).resolve().as_uri()
            redirect(self._client, uri, self._artifacts, is_own=uri == _database(store.root))

    def suite(self, manifest: Manifest) -> Iterator[str]:
        """Import one suite; yield `created`, `replaced` or `skipped` per finished cell."""
        experiment = self._experiment(manifest.suite)
        parent = self._parent(experiment, manifest)
        known = self._children(experiment, parent)
        is_changed = self._client.get_run(parent).info.status != "FINISHED"
        for name in manifest.cells:
            folder = self._store.cell(name)
            if folder.is_done:
                try:
                    outcome = self._cell(experiment, parent, folder, known)
                except Exception as error:
                    if not _is_refusal(error):
                        raise
                    self.refused[name] = mlflow_error("", error).message.partition("error: ")[2]
                    continue
                is_changed |= outcome != "skipped"
                yield outcome
        if is_changed:
            self._client.set_terminated(parent)

    def _experiment(self, name: str) -> str:
        """Id of the experiment for all scales of a suite."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _parent(self, experiment: str, manifest: Manifest) -> str:
        """Id of the parent run of a suite at a scale, with up-to-date tags."""
        from mlflow.entities import RunTag

        name = manifest.name
        runs = self._client.search_runs([experiment], f"tags.suite_run = '{name}'", max_results=1)
        run = runs[0] if runs else self._client.create_run(experiment, run_name=name, tags={"suite_run": name})
        facts = {
            key: _cut(str(getattr(manifest, key)), _TAG_LENGTH) for key in ("suite", "scale", "command", "created")
        }
        changed = {key: value for key, value in facts.items() if run.data.tags.get(key) != value}
        if changed:
            self._client.log_batch(run.info.run_id, tags=[RunTag(*fact) for fact in changed.items()])
        return str(run.info.run_id)

    def _children(self, experiment: str, parent: str) -> dict[str, list[Any]]:
        """Child runs of a parent by cell folder, finished or not."""
        known: dict[str, list[Any]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000, page_token=token
            )
            for run in page:
                known.setdefault(run.data.tags.get("cell", run.info.run_name), []).append(run)
            token = page.token
            if not token:
                return known

    def _cell(self, experiment: str, parent: str, folder: Folder, known: Mapping[str, Sequence[Any]]) -> str:
        with understood(folder.path):
            cell, fingerprint = folder.read("cell.json"), _fingerprint(folder)
        earlier = known.get(folder.path.name, [])
        if [_is_whole(run, fingerprint) for run in earlier] == [True]:
            return "skipped"
        for run in earlier:
            self._client.delete_run(run.info.run_id)
        self._import(experiment, parent, folder, cell, fingerprint)
        return "replaced" if earlier else "created"

    def _import(self, experiment: str, parent: str, folder: Folder, cell: Mapping[str, Any], fingerprint: str) -> None:
        """Write one cell as one run, which becomes FINISHED only once it is complete."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        with understood(folder.path):
            origin, data = folder.read("provenance.json"), cell["data"]
            started_ms, finished_ms = _milliseconds(origin["started"]), _milliseconds(origin["finished"])
            tags = {
                "mlflow.parentRunId": parent,
                "cell": folder.path.name,
                "cell_id": cell["cell_id"],
                "fingerprint": fingerprint,
                "commit": str(origin["commit"]),
                "dirty": str(origin["dirty"]),
                "data_sha256": data["sha256"],
            }
            settled, scored = params(cell, origin.get("chosen", {})), metrics(folder)
            settings = [Param(key, value) for key, value in settled.values.items()]
            numbers = [Metric(key, value, finished_ms, 0) for key, value in scored.values.items()]
            originals = [
                RunTag(f"{kind}.{name}", _cut(original, _TAG_LENGTH))
                for kind, named in (("param", settled.renamed), ("metric", scored.renamed))
                for name, original in named.items()
            ]
            source = _cut(json.dumps(origin["data_files"]), _SOURCE_LENGTH)
            used = Dataset(data["name"], data["sha256"][:_DIGEST_LENGTH], source_type="local", source=source)
        run = self._client.create_run(experiment, start_time=started_ms, run_name=folder.path.name, tags=tags)
        run_id = run.info.run_id
        try:
            for start in range(0, len(originals), _TAGS_PER_BATCH):
                self._client.log_batch(run_id, tags=originals[start : start + _TAGS_PER_BATCH])
            for start in range(0, len(settings), _PARAMS_PER_BATCH):
                self._client.log_batch(run_id, params=settings[start : start + _PARAMS_PER_BATCH])
            for start in range(0, len(numbers), _METRICS_PER_BATCH):
                self._client.log_batch(run_id, metrics=numbers[start : start + _METRICS_PER_BATCH])
            self._client.log_inputs(run_id, [DatasetInput(used, [InputTag("mlflow.data.context", data["split"])])])
            for file in _artifacts(folder):
                self._client.log_artifact(run_id, str(file))
        except Exception as error:
            if _is_refusal(error):
                self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, end_time=finished_ms)


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow does not accept a value, which says nothing about the next cell."""
    return getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"


def _manifests(store: Path, suite: str | None) -> list[Manifest]:
    known = manifests(store)
    chosen = [each for each in known if suite in (None, each.suite, each.name)]
    if not chosen:
        what = f"suite '{suite}' was not" if suite else "no suite was"
        guess = did_you_mean(suite, {each.suite for each in known}) if suite else ""
        if known:
            fix = harness_command("sync", known[0].suite, store=store)
        elif suite:
            fix = harness_command("list", "suites")
        else:
            fix = harness_command("run", "main_table", scale="mini", store=store)
        raise UserError(f"{store}: {what} run in this store{guess}", fix=fix)
    return chosen


def _fingerprint(folder: Folder) -> str:
    """Hash of the imported files; it changes when a cell is rerun."""
    return digest({file.name: file_digest(file) for file in _artifacts(folder)}, 32)


def _artifacts(folder: Folder) -> list[Path]:
    has_curve = (folder.path / CURVE).is_file()
    return [folder.path / name for name in (*FILES, *([CURVE] if has_curve else []))]


def _is_whole(run: Any, fingerprint: str) -> bool:
    """Whether a run is a complete import of the cell's current content."""
    return bool(run.info.status == "FINISHED" and run.data.tags.get("fingerprint") == fingerprint)


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def _renamed(names: Mapping[tuple[str, ...], str], separator: str) -> dict[str, str]:
    return {name: separator.join(path) for path, name in names.items() if name != separator.join(path)}


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:  # an integer beyond any float
        return False


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _database(store: Path) -> str:
    return f"sqlite:///{(store / 'mlflow.db').resolve()}"


def _only_writer(store: Path) -> contextlib.AbstractContextManager[None]:
    refusal = f"{store}: another sync is writing to MLflow"
    return locked(store / ".mlflow.lock", refusal, fix=f"wait for it to end, then: {same_command()}")
