"""Import finished cells into MLflow: a suite becomes a parent run, its methods and cells child runs. The import is repeatable.

MLflow is written through `MlflowClient` with explicit run ids, never through the active run, so that `MLFLOW_RUN_ID` or
another run in the environment cannot redirect a cell. Only one process writes at a time, because concurrent migrations
corrupt a fresh SQLite file.
"""

import contextlib
import os
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from harness.commands import harness_command, same_command
from harness.errors import UserError, did_you_mean
from harness.files import explained, locked
from harness.store.manifest import Manifest, manifests
from harness.store.mlflow_address import is_database, patient, shown
from harness.store.mlflow_content import NO_SUMMARY, SuiteSummary
from harness.store.mlflow_import import Importer, own_database
from harness.store.mlflow_view import SHARE_KEY
from harness.store.store import Store

Summarise: TypeAlias = Callable[[Path, Manifest], SuiteSummary]
"""Computes results that need several cells of a store."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """Result of a sync, as numbers of cells.

    Attributes:
        created: imported for the first time.
        replaced: imported again, because the cell was rerun or its import was interrupted.
        skipped: already imported and unchanged.
        refused: cells that MLflow does not accept, with the reason.
        uri: address of the MLflow server or database, without user name and password.
        experiments: ids of the experiments of the suites.
        removed: deleted in MLflow, because the suite no longer has them or their result.
    """

    created: int
    replaced: int
    skipped: int
    refused: tuple[tuple[str, str], ...]
    uri: str
    experiments: tuple[str, ...] = ()
    removed: int = 0

    @property
    def ui_command(self) -> str:
        """Command that serves a database, with the address to open; or the address of a server."""
        last = self.experiments[-1] if self.experiments else ""
        page = f"/#/experiments/{last}/runs?viewStateShareKey={SHARE_KEY}" if last else ""
        if is_database(self.uri):
            return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}    # http://127.0.0.1:5000{page}"
        return f"{self.uri.rstrip('/')}{page}"


def sync(
    store: Path,
    suite: str | None = None,
    tracking_uri: str | None = None,
    summarise: Summarise = lambda store, manifest: NO_SUMMARY,
) -> SyncResult:
    """Import all finished cells of one suite or of all suites in the store; repeating it changes nothing.

    Args:
        store: folder of the store.
        suite: name of a suite, for all its scales, or of a manifest; None for all suites.
        tracking_uri: MLflow tracking URI; default `MLFLOW_TRACKING_URI`, otherwise `mlflow.db` in the store.
        summarise: computes Score, Freq and the like; by default, runs have only what their own cell says.

    Raises:
        UserError: if nothing was run, another sync is running, or MLflow is unreachable or reports an error.
    """
    chosen = _manifests(store, suite)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own_database(store)
    with patient(uri), explained(store), _only_writer(store):
        importer = Importer(Store(store), uri)
        summaries = {manifest.name: summarise(store, manifest) for manifest in chosen}
        counts = Counter(
            outcome for manifest in chosen for outcome in importer.suite(manifest, summaries[manifest.name])
        )
    return SyncResult(
        created=counts["created"],
        replaced=counts["replaced"],
        skipped=counts["skipped"],
        refused=tuple(importer.refused.items()),
        uri=shown(uri),
        experiments=tuple(dict.fromkeys(importer.experiments)),
        removed=counts["removed"],
    )


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


def _only_writer(store: Path) -> contextlib.AbstractContextManager[None]:
    refusal = f"{store}: another sync is writing to MLflow"
    return locked(store / ".mlflow.lock", refusal, fix=f"wait for it to end, then: {same_command()}")
