"""Import of finished cells into MLflow, with real databases and a real server."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from filelock import FileLock

from harness.errors import UserError
from harness.store.mlflow_content import COMPARED
from harness.store.tracking import sync
from tests.helpers.commands import ROOT
from tests.helpers.fake_store import FakeStore


@pytest.fixture(autouse=True)
def _no_tracking_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A migrated database without runs, shared because migrations take seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def fresh_store(tmp_path):
    """Two cells that share one edit run."""
    return FakeStore(tmp_path / "results").write_suite(
        methods=("onceedit",), models=("tiny/llama", "tiny/gptj"), data=("zsre",)
    )


@pytest.fixture
def store(fresh_store, migrated):
    """The same store with a migrated database."""
    shutil.copy(migrated, fresh_store.root / "mlflow.db")
    return fresh_store


def runs_of(uri):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(experiments))
    return client, [r for r in runs if "cell_id" in r.data.tags], [r for r in runs if "cell_id" not in r.data.tags]


def test_a_cell_becomes_a_child_run_with_params_metrics_data_and_artifacts(store):
    result = sync(store.root)
    assert (result.created, result.replaced, result.skipped) == (2, 0, 0)
    client, children, parents = runs_of(result.uri)
    assert [parent.info.run_name for parent in parents] == ["main_table.mini"]
    assert parents[0].info.status == "FINISHED"
    assert len(children) == 2
    run = next(child for child in children if child.data.params["model"] == "tiny/llama")
    assert run.info.run_name == "OnceEdit · Llama2-7B (mini) · ZsRE"
    folder = store.root / "cells" / run.data.tags["cell"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    assert run.data.tags["commit"].startswith("01234567")
    assert run.data.metrics["teacher_forced.reliability"] == metrics["teacher_forced"]["reliability"]["score"]
    of_axes = [metrics["generation"][axis]["score"] for axis in ("reliability", "generality", "locality")]
    assert math.isclose(run.data.metrics["generation.score"], sum(of_axes) / 3)
    scope = {key: value for key, value in run.data.metrics.items() if key.startswith("scope.")}
    assert scope["scope.generality.auroc.both"] == metrics["scope"]["generality"]["auroc"]["both"]
    assert scope["scope.locality.share_below_0.3"] == metrics["scope"]["locality"]["share_below_0.3"]
    assert not any("histogram" in key for key in scope)
    assert run.data.metrics["edit_s"] == 2.0
    assert run.data.metrics["flops.edit"] == 10**12
    assert not any(name.endswith(".n") or name.startswith("cost") for name in run.data.metrics), "constants"
    assert run.data.params["onceedit.optimiser.lr"] == "0.0005"
    assert run.data.params["schedule.kind"] == "batch"
    used = run.inputs.dataset_inputs[0].dataset
    assert (used.name, used.digest) == ("zsre", run.data.tags["data_sha256"][:36])
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert kept == {
        "records.parquet",
        "cell.json",
        "metrics.json",
        "cost.json",
        "provenance.json",
        "log.txt",
        "answers.json",
    }
    assert (store.root / "mlartifacts").is_dir()
    assert (run.info.end_time - run.info.start_time) == 10_000


def test_a_second_sync_creates_nothing_and_unfinished_cells_are_skipped(store):
    store.write_failure("ft-l", "tiny/llama", "zsre", "out of memory")
    store.write_manifest()
    uri = sync(store.root).uri
    again = sync(store.root)
    assert (again.created, again.replaced, again.skipped) == (0, 0, 2)
    assert len(runs_of(uri)[1]) == 2


def test_a_rerun_cell_replaces_its_run(store):
    uri = sync(store.root).uri
    folder = store.root / "cells" / store.cells[0]
    cost = json.loads((folder / "cost.json").read_text())
    cost["phases_s"]["edit"] = 77.0
    (folder / "cost.json").write_text(json.dumps(cost))
    again = sync(store.root)
    assert (again.created, again.replaced, again.skipped) == (0, 1, 1)
    children = runs_of(uri)[1]
    assert sorted(child.data.metrics["edit_s"] for child in children) == [2.0, 77.0]


def test_an_interrupted_import_is_repeated(store, monkeypatch):
    from mlflow import MlflowClient

    log_inputs = MlflowClient.log_inputs
    calls = []

    def cut_off_the_second(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return log_inputs(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_inputs", cut_off_the_second)
    with pytest.raises(KeyboardInterrupt):
        sync(store.root)
    monkeypatch.undo()
    again = sync(store.root)
    assert (again.created, again.replaced, again.skipped) == (0, 1, 1)
    _, children, parents = runs_of(again.uri)
    assert [run.info.status for run in [*children, *parents]] == ["FINISHED"] * 3


def test_a_run_id_in_the_environment_does_not_redirect_cells(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    _, children, _ = runs_of(sync(store.root).uri)
    assert len({child.info.run_id for child in children}) == 2


def test_the_environment_names_another_database(fresh_store, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    sync(fresh_store.root)
    assert (tmp_path / "elsewhere.db").is_file()
    assert not (fresh_store.root / "mlflow.db").exists()


def test_names_that_mlflow_refuses_become_valid_and_the_cells_behind_are_imported(store):
    folder = store.root / "cells" / store.cells[0]
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["diagnostics"] |= {"acc@1 (%)": 0.5, "acc@1 [%]": 0.25, "lost": math.nan, "huge": 10**400}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    cell = json.loads((folder / "cell.json").read_text())
    cell["method"]["hparams"] |= {"β (decay)": 1, "long": "x" * 9000}
    (folder / "cell.json").write_text(json.dumps(cell))
    result = sync(store.root)
    assert (result.created, result.refused) == (2, ())
    run = next(child for child in runs_of(result.uri)[1] if child.data.tags["cell"] == store.cells[0])
    named = {
        original: run.data.metrics[tag.removeprefix("metric.")]
        for tag, original in run.data.tags.items()
        if tag.startswith("metric.")
    }
    assert named == {"diagnostics.acc@1 (%)": 0.5, "diagnostics.acc@1 [%]": 0.25}
    assert not any("lost" in name or "huge" in name for name in run.data.metrics)
    assert len(run.data.params["onceedit.long"]) == 6000
    (decay,) = (tag for tag, original in run.data.tags.items() if original == "onceedit.β (decay)")
    assert run.data.params[decay.removeprefix("param.")] == "1"


def test_a_cell_that_mlflow_refuses_is_named_and_the_others_are_imported(store, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    log_inputs, calls = MlflowClient.log_inputs, []

    def refuse_the_first(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise MlflowException("this dataset is odd", INVALID_PARAMETER_VALUE)
        return log_inputs(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse_the_first)
    result = sync(store.root)
    assert (result.created, result.refused) == (1, ((store.cells[0], "this dataset is odd"),))
    assert [run.info.status for run in runs_of(result.uri)[1] if run.data.tags["cell"] == store.cells[0]] == ["FAILED"]
    again = sync(store.root)
    assert (again.created, again.replaced, again.skipped, again.refused) == (0, 1, 1, ())


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_artifacts_stay_reachable_in_a_store_that_was_moved_or_copied(how, store, tmp_path):
    from mlflow import MlflowClient

    sync(store.root)
    before = {path.relative_to(store.root) for path in (store.root / "mlartifacts").rglob("*")}
    there = tmp_path / "else where" / "results"
    there.parent.mkdir()
    (shutil.move if how == "moved" else shutil.copytree)(store.root, there)
    moved = FakeStore(there)
    moved.cells = store.cells
    moved.write_cell("ft-l", "tiny/llama", "zsre")
    moved.write_manifest()
    result = sync(there)
    assert (result.created, result.replaced, result.skipped) == (1, 0, 2)
    assert store.root.exists() == (how == "copied")
    if how == "copied":
        assert {path.relative_to(store.root) for path in (store.root / "mlartifacts").rglob("*")} == before
    client = MlflowClient(tracking_uri=result.uri)
    for run in runs_of(result.uri)[1]:
        assert len(client.list_artifacts(run.info.run_id)) == 7
        assert client.download_artifacts(run.info.run_id, "cell.json", str(tmp_path))


def test_two_suites_that_share_a_cell_each_have_it(store):
    manifest = store.root / "suites" / "main_table.mini.json"
    other = json.loads(manifest.read_text()) | {"suite": "speed", "cells": store.cells[:1]}
    (store.root / "suites" / "speed.mini.json").write_text(json.dumps(other))
    assert sync(store.root).created == 3
    assert sync(store.root, "speed").skipped == 1


def test_two_labels_of_one_cell_are_two_runs(store):
    store.write_cell("ft-l", "tiny/llama", "zsre")
    twin = store.write_cell("ft-l", "tiny/llama", "zsre", label="mine")
    cell = json.loads((twin / "cell.json").read_text())
    first = next(path for path in (store.root / "cells").glob("ft-l-*"))
    cell["cell_id"] = json.loads((first / "cell.json").read_text())["cell_id"]
    (twin / "cell.json").write_text(json.dumps(cell))
    store.write_manifest()
    assert sync(store.root).created == 4
    assert sync(store.root).skipped == 4


def test_a_suite_that_was_not_run_is_refused(store):
    with pytest.raises(UserError, match="suite 'speed' was not run"):
        sync(store.root, "speed")


def test_an_unreadable_cell_is_reported_in_one_line_and_leaves_no_run(store):
    folder = store.root / "cells" / store.cells[0]
    origin = json.loads((folder / "provenance.json").read_text())
    del origin["data_files"]
    (folder / "provenance.json").write_text(json.dumps(origin))
    with pytest.raises(UserError, match=r"damaged, or written by another version .*missing key 'data_files'"):
        sync(store.root)
    assert runs_of(f"sqlite:///{store.root / 'mlflow.db'}")[1] == []


def test_a_second_writer_is_refused(store):
    with FileLock(store.root / ".mlflow.lock"), pytest.raises(UserError, match="another sync is writing"):
        sync(store.root)


def test_a_broken_database_is_reported_in_one_line(store):
    (store.root / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db reported an error") as refusal:
        sync(store.root)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("uri", ["file:///nowhere/mlruns", "foo://bar", "http://[bad", "postgresql://me@localhost/db"])
def test_an_address_that_mlflow_cannot_open_is_reported_in_one_line(store, uri):
    """PostgreSQL fails without its driver, and with the driver because no server is running."""
    with pytest.raises(UserError) as refusal:
        sync(store.root, tracking_uri=uri)
    assert uri.replace("me@", "***@") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unreachable_server_is_reported_immediately_in_one_line(store):
    started = time.monotonic()
    with pytest.raises(UserError, match="no MLflow server responds"):
        sync(store.root, tracking_uri=f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 20


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, harness.store.tracking; sys.exit('mlflow' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_fresh_database_is_created_without_output(fresh_store):
    code = f"from pathlib import Path; from harness.store.tracking import sync; sync(Path({str(fresh_store.root)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_the_curve_of_a_sequence_is_an_artifact(store):
    folder = store.root / "cells" / store.cells[0]
    shutil.copy(folder / "records.parquet", folder / "curve.parquet")
    client, children, _ = runs_of(sync(store.root).uri)
    kept = [{one.path for one in client.list_artifacts(run.info.run_id)} for run in children]
    assert sum("curve.parquet" in paths for paths in kept) == 1


def test_a_sequence_has_a_step_for_each_point_that_was_scored(store):
    folder = store.root / "cells" / store.cells[0]
    cell, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("cell", "metrics"))
    cell["schedule"] = {"kind": "sequential", "block": 25, "score_at": [25, 50]}
    early = {"generation": {"reliability": {"score": 0.9, "exact": 0.8, "n": 25}}}
    metrics["curve"] = {
        "25": {**early, "retained": early},
        "50": {"generation": metrics["generation"], "retained": {"generation": {"reliability": {"score": 0.7}}}},
    }
    (folder / "cell.json").write_text(json.dumps(cell))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    client, children, _ = runs_of(sync(store.root).uri)
    run = next(child for child in children if child.data.tags["cell"] == store.cells[0])

    def history(name):
        return [
            (one.step, one.value)
            for one in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        ]

    assert history("generation.reliability") == [(25, 0.9), (50, metrics["generation"]["reliability"]["score"])]
    assert history("generation.retained.reliability") == [(25, 0.9), (50, 0.7)]
    assert run.data.metrics["generation.reliability"] == metrics["generation"]["reliability"]["score"]


def test_one_line_of_pandas_compares_the_methods(migrated, tmp_path):
    import mlflow

    from reports.summary import summarise

    whole = FakeStore(tmp_path / "results").write_suite()
    shutil.copy(migrated, whole.root / "mlflow.db")
    (whole.root / "reports" / "main_table.mini").mkdir(parents=True)
    (whole.root / "reports" / "main_table.mini" / "main_table.tex").write_text("a table")
    result = sync(whole.root, summarise=summarise)
    mlflow.set_tracking_uri(result.uri)
    try:
        table = mlflow.search_runs(experiment_names=["main_table"], filter_string="tags.kind = 'method'")
    finally:
        mlflow.set_tracking_uri(None)
    table = table[table["params.dataset"] == "zsre"].set_index("params.label")
    shown = table[[f"metrics.{name}" for name in ("generation.score", "freq", "edit_time_vs_onceedit", "flops.edit")]]
    assert shown.loc["onceedit"].tolist()[1:] == [1.0, 1.0, 10.0**12]
    assert shown.loc["ft-l"].tolist()[1:] == [3.0, 6.0, 3 * 10.0**12]
    assert shown["metrics.generation.score"].between(0, 1).all()
    client, children, runs = runs_of(result.uri)
    assert {child.data.metrics.get("edit_time_vs_onceedit") for child in children} == {None, 1.0, 2.0}
    (parent,) = (run for run in runs if run.data.tags["kind"] == "suite")
    of_ft_l = {
        name.removesuffix(".ft-l.zsre"): value for name, value in parent.data.metrics.items() if "ft-l.zsre" in name
    }
    assert of_ft_l.keys() == {*COMPARED, "teacher_forced.score", "generation.score"}
    assert of_ft_l["freq"] == 3.0
    assert table.loc["ft-l", ["metrics.setup_s", "metrics.break_even_edits"]].notna().all(), "its own run has the rest"
    assert "| OnceEdit |" in parent.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "reports")] == ["reports/main_table.tex"]
    models = client.search_logged_models([parent.info.experiment_id])
    assert result.refused == ()
    assert len(models) == 2 + 6, "one plug-in per dataset for all models, and one edited model per cell of FT-L"
    tags = client.get_experiment(parent.info.experiment_id).tags
    assert "metrics.`generation.score`" in json.loads(tags["mlflow.sharedViewState.harness"])["selectedColumns"]
    again = sync(whole.root, summarise=summarise)
    assert (again.created, again.replaced, again.skipped, again.removed) == (0, 0, 18, 0)
    assert len(runs_of(result.uri)[2]) == len(runs), "and no method twice"


def of_kind(uri, kind):
    """Runs of a kind in MLflow, by name."""
    _, children, others = runs_of(uri)
    found = [run for run in [*children, *others] if run.data.tags["kind"] == kind]
    assert len({run.info.run_name for run in found}) == len(found), "no name twice"
    return {run.info.run_name: run for run in found}


def test_a_cell_that_its_suite_no_longer_has_is_removed_and_comes_back_with_the_cell(migrated, tmp_path):
    from reports.summary import summarise

    whole = FakeStore(tmp_path / "results").write_suite(methods=("ft-l", "onceedit"), data=("zsre",))
    shutil.copy(migrated, whole.root / "mlflow.db")
    first, hundred = sync(whole.root, summarise=summarise), whole.cells
    scores = {name: run.data.metrics for name, run in of_kind(first.uri, "suite").items()}
    whole.cells = []
    low = {"reliability": 0.1, "generality": 0.1, "locality": 0.1, "locality_unrelated": 0.1}
    for model in ("tiny/llama", "tiny/mistral", "tiny/gptj"):  # more edits, and one method less
        whole.write_cell("onceedit", model, "zsre", records=60, chances=low)
    whole.write_manifest()
    second = sync(whole.root, summarise=summarise)
    assert (second.created, second.replaced, second.skipped, second.removed) == (3, 0, 0, 6)
    assert {run.data.params["edits"] for run in of_kind(second.uri, "cell").values()} == {"60"}
    assert list(of_kind(second.uri, "method")) == ["OnceEdit · ZsRE"]
    (before,), (now,) = scores.values(), (run.data.metrics for run in of_kind(second.uri, "suite").values())
    assert now["generation.score.onceedit"] < before["generation.score.onceedit"]
    assert math.isnan(now["generation.score.ft-l"]), "MLflow deletes no metric"
    again = sync(whole.root, summarise=summarise)
    assert (again.created, again.replaced, again.skipped, again.removed) == (0, 0, 3, 0)
    whole.cells = hundred
    whole.write_manifest()
    back = sync(whole.root, summarise=summarise)
    assert (back.created, back.removed) == (6, 3)
    assert {name: run.data.metrics for name, run in of_kind(back.uri, "suite").items()} == scores


def test_what_other_stores_and_users_have_on_a_server_is_not_removed(store, migrated, tmp_path):
    from mlflow import MlflowClient

    shared = f"sqlite:///{shutil.copy(migrated, tmp_path / 'shared.db')}"
    other = FakeStore(tmp_path / "other").write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",))
    for each in (store, other):
        sync(each.root, tracking_uri=shared)
    client, _, parents = runs_of(shared)
    parent = next(run for run in parents if str(store.root) in run.data.tags["store"])
    mine = {"mlflow.parentRunId": parent.info.run_id}
    client.create_run(parent.info.experiment_id, run_name="mine", tags=mine)
    store.cells = store.cells[:1]
    store.write_manifest()
    assert sync(store.root, tracking_uri=shared).removed == 1
    assert sorted(run.data.tags["cell"] for run in runs_of(shared)[1]) == sorted([*store.cells, *other.cells])
    assert "mine" in {run.info.run_name for run in runs_of(shared)[2]}
    assert MlflowClient(tracking_uri=shared).get_run(parent.info.run_id).info.status == "FINISHED"


def test_two_stores_with_the_same_cells_each_keep_their_runs_on_a_server(migrated, tmp_path):
    from reports.summary import summarise

    shared = f"sqlite:///{shutil.copy(migrated, tmp_path / 'shared.db')}"
    first, second = (
        FakeStore(tmp_path / name).write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",))
        for name in ("first", "second")
    )
    assert first.cells == second.cells
    for each in (first, second, first):
        sync(each.root, tracking_uri=shared, summarise=summarise)
    _, children, others = runs_of(shared)
    assert len({run.data.tags["store"] for run in children}) == len(children) == 2
    assert sorted(run.data.tags["kind"] for run in others) == ["method", "method", "suite", "suite"]
    second.write_cell("ft-l", "tiny/llama", "zsre", cost={"edits": 7})
    assert sync(second.root, tracking_uri=shared, summarise=summarise).replaced == 1
    assert sync(first.root, tracking_uri=shared, summarise=summarise).skipped == 1
    assert len(runs_of(shared)[1]) == 2


def test_entries_of_one_dataset_differ_in_names_params_and_scores_of_the_suite(migrated, tmp_path):
    from reports.summary import summarise

    fake = FakeStore(tmp_path / "results")
    for relations, chance in (("seen", 0.9), ("unseen", 0.1)):
        chances = dict.fromkeys(("reliability", "generality", "locality"), chance)
        options = {"label": "FT+", "chances": chances, "data_settings": {"relations": relations, "train": 64}}
        fake.write_cell("ft-l", "tiny/llama", "counterfact", **options)
    fake.write_manifest()
    shutil.copy(migrated, fake.root / "mlflow.db")
    uri = sync(fake.root, summarise=summarise).uri
    name = "FT+ · Llama2-7B (mini) · CounterFact"
    assert of_kind(uri, "cell").keys() == {f"{name} · relations seen", f"{name} · relations unseen"}
    for kind in ("cell", "method"):
        params = [run.data.params for run in of_kind(uri, kind).values()]
        assert {(each["relations"], each["train"], each["split"]) for each in params} == {
            ("seen", "64", "test"),
            ("unseen", "64", "test"),
        }
    (suite,) = of_kind(uri, "suite").values()
    shown = {
        original: suite.data.metrics[tag.removeprefix("metric.")]
        for tag, original in suite.data.tags.items()
        if tag.startswith("metric.generation.score.FTplus.")
    }
    seen, unseen = (shown[f"generation.score.FT+.relations {relations}"] for relations in ("seen", "unseen"))
    assert seen > 0.5 > unseen


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'boto3'", name="boto3"),
        PermissionError(13, "Permission denied", "/mlruns/0"),
    ],
    ids=["package", "folder"],
)
@pytest.mark.parametrize("method", ["log_artifact", "log_table"])
def test_where_artifacts_cannot_be_uploaded_is_one_line(method, error, store, monkeypatch):
    from mlflow import MlflowClient

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(MlflowClient, method, fail)
    with pytest.raises(UserError, match=r"mlflow\.db reported an error: .*(boto3|/mlruns/0)") as refusal:
        sync(store.root)
    assert ("install the Python package that provides boto3" in refusal.value.fix) == bool(error.args[0] != 13)


@pytest.mark.slow
def test_a_real_server_receives_cells_and_their_artifacts(store, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/art"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    uri = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    try:
        wait_until_healthy(uri, server)
        assert sync(store.root, tracking_uri=uri).created == 2
        assert sync(store.root, tracking_uri=uri).skipped == 2
        client, children, _ = runs_of(uri)
        assert "records.parquet" in {artifact.path for artifact in client.list_artifacts(children[0].info.run_id)}
        assert list((tmp_path / "art").rglob("records.parquet"))
        assert not (store.root / "mlartifacts").exists()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(uri, server):
    for _ in range(120):
        assert server.poll() is None, "the server exited"
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("the server did not start within a minute")
