"""Import finished cells into MLflow: a suite becomes a parent run, a cell a child run. The import is repeatable.

MLflow is written through `MlflowClient` with explicit run ids, never through the active run, so that `MLFLOW_RUN_ID` or
another run in the environment cannot redirect a cell. Only one process writes at a time, because concurrent migrations
corrupt a fresh SQLite file.
"""

import contextlib
import json
import logging
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.commands import harness_command, same_command
from harness.errors import UserError, did_you_mean
from harness.files import explained, locked, understood
from harness.identity import digest, file_digest
from harness.store.manifest import Manifest, manifests
from harness.store.store import Folder, Store

ARTIFACTS = ("records.parquet", "cell.json", "metrics.json", "cost.json", "provenance.json", "log.txt")
CURVE = "curve.parquet"
"""Files of a cell that become artifacts of its run, and the one that only sequential cells have."""
CONNECT_TIMEOUT_S = 10

_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 36
_NOISY = ("alembic", "mlflow", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class SyncResult:
    """Result of a sync, as numbers of cells.

    Attributes:
        created: imported for the first time.
        replaced: imported again, because the cell was rerun or its import was interrupted.
        skipped: already imported and unchanged.
        uri: address of the MLflow server or database.
    """

    created: int
    replaced: int
    skipped: int
    uri: str

    @property
    def ui_command(self) -> str:
        """Command or address to view the runs."""
        return self.uri if _is_server(self.uri) else f"mlflow ui --backend-store-uri {self.uri}"


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
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store / 'mlflow.db').resolve()}"
    with _quiet(), explained(store), _only_writer(store), _mlflow_errors(uri):
        importer = _Importer(Store(store), uri)
        counts = {"created": 0, "replaced": 0, "skipped": 0}
        for manifest in chosen:
            for outcome in importer.suite(manifest):
                counts[outcome] += 1
    return SyncResult(**counts, uri=uri)


def params(cell: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a cell's settings into MLflow params, the columns of its run table."""
    method, data = cell["method"], cell["data"]
    return {
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
        **{key: str(value) for key, value in _flat(cell["schedule"], "schedule", ".").items()},
        **{key: str(value) for key, value in _flat(method["hparams"], "hparams", ".").items()},
    }


def metrics(folder: Folder) -> dict[str, float]:
    """Flatten all finite numbers of metrics.json and cost.json."""
    flat = {**_flat(folder.read("metrics.json"), "", "/"), **_flat(folder.read("cost.json"), "cost", "/")}
    numbers = {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


class _Importer:
    """A connection to MLflow that imports the suites of one store.

    Raises:
        UserError: if MLflow cannot open the address.
    """

    def __init__(self, store: Store, uri: str) -> None:
        import mlflow

        if _is_server(uri):
            _check_reachable(uri)
        self._store = store
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
        except Exception as error:
            raise _mlflow_error(uri, error) from error
        self._artifacts = None if _is_server(uri) else (store.root / "mlartifacts").resolve().as_uri()

    def suite(self, manifest: Manifest) -> Iterator[str]:
        """Import one suite; yield `created`, `replaced` or `skipped` per finished cell."""
        experiment = self._experiment(manifest.suite)
        parent = self._parent(experiment, manifest)
        known = self._children(experiment, parent)
        is_changed = self._client.get_run(parent).info.status != "FINISHED"
        for name in manifest.cells:
            folder = self._store.cell(name)
            if folder.is_done:
                outcome = self._cell(experiment, parent, folder, known)
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
        facts = {key: str(getattr(manifest, key)) for key in ("suite", "scale", "command", "created")}
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
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

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
            settings = [Param(key, value[:_PARAM_LENGTH]) for key, value in params(cell).items()]
            numbers = [Metric(key, value, finished_ms, 0) for key, value in metrics(folder).items()]
            source = json.dumps(origin["data_files"])
            used = Dataset(data["name"], data["sha256"][:_DIGEST_LENGTH], source_type="local", source=source)
        run = self._client.create_run(experiment, start_time=started_ms, run_name=folder.path.name, tags=tags)
        run_id = run.info.run_id
        for start in range(0, len(settings), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=settings[start : start + _PARAMS_PER_BATCH])
        for start in range(0, len(numbers), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=numbers[start : start + _METRICS_PER_BATCH])
        self._client.log_inputs(run_id, [DatasetInput(used, [InputTag("mlflow.data.context", data["split"])])])
        for file in _artifacts(folder):
            self._client.log_artifact(run_id, str(file))
        self._client.set_terminated(run_id, end_time=finished_ms)


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
    return [folder.path / name for name in (*ARTIFACTS, *([CURVE] if has_curve else []))]


def _is_whole(run: Any, fingerprint: str) -> bool:
    """Whether a run is a complete import of the cell's current content."""
    return bool(run.info.status == "FINISHED" and run.data.tags.get("fingerprint") == fingerprint)


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def _flat(value: Any, prefix: str, separator: str) -> dict[str, Any]:
    """Flatten nested mappings by joining their keys; lists are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves.update(_flat(inner, f"{prefix}{separator}{key}" if prefix else str(key), separator))
    return leaves


def _only_writer(store: Path) -> contextlib.AbstractContextManager[None]:
    refusal = f"{store}: another sync is writing to MLflow"
    return locked(store / ".mlflow.lock", refusal, fix=f"wait for it to end, then: {same_command()}")


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _check_reachable(uri: str) -> None:
    """Fail immediately if the server is unreachable; MLflow's client would retry for minutes. Any response will do."""
    try:
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:  # ValueError: not an address
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no MLflow server responds at {uri} ({reason})",
            fix=f"start it, or write mlflow.db in the store: env -u MLFLOW_TRACKING_URI {same_command()}",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide MLflow's migration logs and hints, and disable its telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401 (reads the variable above and sets log levels, so import it first)

    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """Turn an error from the tracking server or database into one line."""
    try:
        yield
    except Exception as error:
        foreign = type(error).__module__.partition(".")[0] in {"mlflow", "sqlalchemy", "alembic"}
        if not foreign or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise
        raise _mlflow_error(uri, error) from error


def _mlflow_error(uri: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"MLflow at {uri} reported an error: {reason}",
        fix=f"repair or remove it, no results are lost, and then: {same_command()}",
    )
