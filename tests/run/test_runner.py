"""One cell from start to end, in this process, on a two-layer checkpoint."""

import dataclasses
import hashlib
import json
import math
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from harness.api import ArtifactSpec
from harness.data.synthetic import upstream_rows
from harness.errors import InsufficientMemoryError, UserError
from harness.evaluation import fluency
from harness.evaluation.capability import scores, tasks
from harness.evaluation.metrics import aggregate
from harness.evaluation.protocols import OWN
from harness.evaluation.scope import scope_metrics
from harness.files import write_json
from harness.models.edited import WeightEditedModel
from harness.models.weights import FILE, weight_hash
from harness.plan.job import job_of
from harness.plan.plan import roots
from harness.plan.recall import recalled
from harness.records import Answer, ItemScore
from harness.run.cost import device_class
from harness.store.rows import read_items
from methods.easyedit.scoring import FORMS
from methods.ft_l import FtL
from tests.data.rows import write
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite


@pytest.fixture(scope="module")
def built(home, tmp_path_factory):
    """A store with the artifacts of the suite."""
    store = tmp_path_factory.mktemp("built")
    PlanBench(home / "small.yaml", store)
    return store


@pytest.fixture
def bench(home, built, tmp_path):
    return PlanBench(home / "small.yaml", shutil.copytree(built, tmp_path / "store"))


def test_a_finished_cell_holds_everything_that_tables_need(bench):
    cell = bench.cell("ft-l")
    assert bench.run(cell).reason is None
    folder = bench.folder(cell)
    assert folder.is_done
    assert {path.name for path in folder.path.iterdir()} == {
        *("cell.json", "records.parquet", "metrics.json", "cost.json", "provenance.json", "log.txt", "DONE")
    }
    described, cost, origin = folder.read("cell.json"), folder.read("cost.json"), folder.read("provenance.json")
    assert described["cell_id"] == cell.cell_id
    assert described["method"]["sources"].keys() == described["method"]["hparams"].keys()
    assert (described["label"], described["model"]["title"], described["data"]["title"]) == (
        *("ft-l", "Tiny-Llama", "CounterFact"),
    )
    assert cost["edits"] == 8
    assert cost["edit_actions"] == [cell.cell_id]
    assert cost["warm_up"] is True
    assert cost["phases_s"]["edit"] > 0
    assert cost["phases_s"]["evaluate"] > 0
    assert cost["phases_s"]["attach"] == 0
    assert next(iter(origin["data_files"])).endswith("counterfact.json")
    assert origin["weights"] == weight_hash(bench.context.load_model(cell.model).model)
    assert origin["tokenizer"] == {"prefix": ["<s>"], "removed_suffix": []}
    assert origin["ambiguous_subjects"] == {}


def test_metrics_follow_from_the_records(bench):
    cell = bench.cell("ft-l")
    bench.run(cell)
    frame = pd.read_parquet(bench.folder(cell).path / "records.parquet")
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Answer)]
    rows = [Answer(**row) for row in frame.to_dict("records")]
    metrics = bench.folder(cell).read("metrics.json")
    metrics.pop("diagnostics")
    assert metrics == aggregate(rows), "and no scope, because edited weights do not decide by prompt"
    assert frame.scope.isna().all()
    by_hand = frame[(frame.protocol == "teacher_forced") & (frame.axis == "reliability")]
    assert len(by_hand) == metrics["teacher_forced"]["reliability"]["n"] == 8
    assert math.isclose(by_hand.score.mean(), metrics["teacher_forced"]["reliability"]["score"])


def test_edited_weights_are_kept_where_asked_and_are_no_part_of_the_results(bench):
    cell = bench.cell("ft-l")
    keeping = dataclasses.replace(cell, keep_weights=True)
    for one in (cell, keeping):
        assert bench.run(one).reason is None
    assert not (bench.folder(cell).path / FILE).exists()
    kept, model = load_file(bench.folder(keeping).path / FILE), bench.context.load_model(cell.model).model
    assert list(kept) == ["model.layers.1.mlp.down_proj.weight"]
    assert not torch.equal(*kept.values(), model.get_parameter(*kept))
    for name in ("records.parquet", "metrics.json"):
        assert (bench.folder(cell).path / name).read_bytes() == (bench.folder(keeping).path / name).read_bytes()


def test_what_changes_no_weights_keeps_none(bench):
    cell = dataclasses.replace(bench.cell("none"), keep_weights=True)
    assert bench.run(cell).reason is None
    assert not (bench.folder(cell).path / FILE).exists()


@pytest.mark.parametrize("scoring", ["teacher_forced", "generation"])
def test_easyedits_scores_stand_under_its_name_in_the_form_that_the_method_has(bench, scoring, monkeypatch):
    monkeypatch.setattr("methods.easyedit.scoring.GENERATED", {"ft-l"} if scoring == "generation" else set())
    cell = dataclasses.replace(bench.cell("ft-l"), protocols=("easyedit",))
    assert bench.run(cell.unedited_outputs(8)).reason is None
    assert bench.run(cell).reason is None
    frame = pd.read_parquet(bench.folder(cell).path / "records.parquet")
    assert bench.folder(cell).read("metrics.json").keys() == {"easyedit", "diagnostics"}
    tokenizer, form = bench.context.load_model(cell.model).tokenizer, FORMS[scoring]
    ids = [form.queries(tokenizer, [(row.prompt, row.target)])[0].target_ids for row in frame.itertuples()]
    assert frame.n_tokens.tolist() == [len(of) for of in ids]
    right = (frame.predicted == [tokenizer.decode(of) for of in ids]) & ~frame.axis.str.startswith("locality")
    assert (frame.exact[right] == 1.0).all()


def test_what_a_method_says_of_the_scope_is_in_the_records_and_in_the_metrics(bench, monkeypatch):
    monkeypatch.setattr(
        WeightEditedModel, "scope", lambda self, queries: [len(query.prompt) / 500 for query in queries]
    )
    cell = bench.cell("ft-l")
    bench.run(cell)
    frame = pd.read_parquet(bench.folder(cell).path / "records.parquet")
    assert (frame.scope == frame.prompt.str.len() / 500).all()
    scope = bench.folder(cell).read("metrics.json")["scope"]
    assert scope == scope_metrics([Answer(**row) for row in frame.to_dict("records")])
    once = frame[(frame.protocol == "generation") & (frame.axis == "locality")]
    assert math.isclose(scope["locality"]["mean"], once.scope.mean())


def test_the_unedited_model_agrees_with_itself_and_costs_nothing(bench):
    cell = bench.cell("none")
    bench.run(cell)
    metrics, cost = bench.folder(cell).read("metrics.json"), bench.folder(cell).read("cost.json")
    for protocol in ("teacher_forced", "generation"):
        for axis in ("locality", "locality_unrelated"):
            assert metrics[protocol][axis]["score"] == 1.0
    assert (cost["edit_actions"], cost["warm_up"], cost["phases_s"]["edit"]) == ([], False, 0.0)


@pytest.mark.parametrize(
    ("built_on", "locality"),
    [
        ({"hardware": "cuda: A100"}, 1.0),
        ({"hardware": "{here}"}, 0.0),
        ({"hardware": "{here}", "device_class": "{here} (shared by 2 processes)"}, 0.0),
        ({"device_class": "cuda: A100"}, 1.0),  # built before the hardware was recorded
        ({}, 0.0),
    ],
)
def test_the_unedited_model_is_asked_again_on_another_class_of_device(bench, monkeypatch, built_on, locality):
    cell, here = bench.cell("none"), device_class("cpu")
    (spec,) = cell.all_unedited_outputs()
    folder = bench.store.artifact(spec.name, spec.key)
    kept = folder.read("unedited.json")
    cost = {key: value for key, value in folder.read("cost.json").items() if key not in ("hardware", "device_class")}
    cost |= {key: value.format(here=here) for key, value in built_on.items()}
    for output in kept["outputs"]:
        output["ids"] = [token + 1 for token in output["ids"]]
    write_json(folder.path / "unedited.json", kept)
    write_json(folder.path / "cost.json", cost)
    assert bench.run(cell).reason is None
    metrics, provenance = (bench.folder(cell).read(f"{name}.json") for name in ("metrics", "provenance"))
    assert {metrics[of.name]["locality"]["score"] for of in OWN} == {locality}
    remarks = [f"the unedited model was asked again for locality on {here}, after cuda: A100"]
    assert provenance.get("remarks", []) == remarks * (locality == 1.0)


def test_the_unedited_model_agrees_with_itself_where_two_files_number_their_records_alike(home, tmp_path):
    rows = upstream_rows("counterfact")
    for name, part in (("my_edits", rows[:18]), ("pool_train", rows[100:130])):
        numbered = [row | {"case_id": number} for number, row in enumerate(part)]
        write(tmp_path / "records" / f"{name}.json", numbered)
    suite = write_suite(
        tmp_path / "alike.yaml",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        methods=["none"],
        datasets=[
            {"name": "counterfact", "path": str(tmp_path / "records"), "edits": 8, "train": 0, "unrelated": 20},
        ],
    )
    bench = PlanBench(suite, tmp_path / "store")
    assert bench.run(bench.cell("none")).reason is None

    metrics = bench.folder(bench.cell("none")).read("metrics.json")

    for protocol in ("teacher_forced", "generation"):
        assert (metrics[protocol]["locality_unrelated"]["score"], metrics[protocol]["locality_unrelated"]["n"]) == (
            1,
            20,
        )
        assert metrics[protocol]["locality"]["score"] == 1


def test_the_scores_that_contradictory_records_allow_are_in_the_metrics(home, tmp_path):
    rows = upstream_rows("counterfact")[:20]
    edited = rows[1]["requested_rewrite"]
    prompt = edited["prompt"].format(edited["subject"])
    write(tmp_path / "records" / "edits.json", [rows[0] | {"paraphrase_prompts": [prompt]}, *rows[1:]])
    suite = write_suite(
        tmp_path / "contradictory.yaml",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        datasets=[{"name": "counterfact", "path": str(tmp_path / "records"), "edits": 4, "train": 0, "unrelated": 0}],
        protocols=["teacher_forced"],
    )
    bench = PlanBench(suite, tmp_path / "store")
    assert [bench.run(cell).reason for cell in bench.plan.runnable] == [None, None]

    folder = bench.folder(bench.cell("ft-l"))
    frame = pd.read_parquet(folder.path / "records.parquet")
    asked = frame[(frame.axis == "generality") & (frame.prompt == prompt)].iloc[0]
    reached = folder.read("metrics.json")["attainable"]

    assert asked.target != edited["target_new"]["str"]
    assert reached == {"teacher_forced": {"generality": pytest.approx(1 - 1 / asked.n_tokens / 4)}}
    assert "attainable" not in bench.folder(bench.cell("none")).read("metrics.json")
    assert bench.plan.notes() == [
        "counterfact: 4 edits, of which 1 rephrase is another edit's prompt with another target "
        "(`conflicts: drop` replaces these records)"
    ]


def test_cells_do_not_depend_on_what_ran_before_them(home, bench, tmp_path):
    for cell in bench.plan.runnable:
        bench.run(cell)
    alone = PlanBench(home / "small.yaml", tmp_path / "alone")
    for cell in reversed(alone.plan.runnable):
        alone.run(cell)
        for name in ("records.parquet", "metrics.json"):
            kept = [one.folder(cell).path / name for one in (bench, alone)]
            assert kept[0].read_bytes() == kept[1].read_bytes()


def test_a_warm_up_is_a_discarded_fact_and_the_clock_starts_after_it(bench, monkeypatch):
    calls = []
    original = FtL.edit

    def edit(self, model, requests, artifacts, context):
        calls.append(([request.record_id for request in requests], dict(context.clock.seconds)))
        return original(self, model, requests, artifacts, context)

    monkeypatch.setattr(FtL, "edit", edit)
    cell = bench.cell("ft-l")
    bench.run(cell)
    data = bench.context.load_data(cell.data)
    assert [ids for ids, _ in calls] == [[data.train[0].id], [record.id for record in data.edits]]
    assert calls[1][1] == {}, "what the warm-up took is not counted"


def test_an_edit_that_is_an_artifact_is_not_made_twice_for_a_warm_up(bench, monkeypatch):
    calls = []
    original = FtL.edit
    spec = ArtifactSpec("shared-edit", "edit", {}, f"{__name__}:touch")

    def edit(self, model, requests, artifacts, context):
        calls.append(len(requests))
        return original(self, model, requests, artifacts, context)

    monkeypatch.setattr(FtL, "artifacts", lambda self, target, data, seed: {"edit": spec})
    monkeypatch.setattr(FtL, "edit", edit)
    cell = dataclasses.replace(bench.cell("ft-l"))
    assert bench.run(spec).reason is None
    assert bench.run(cell).reason is None
    assert calls == [8]
    cost = bench.folder(cell).read("cost.json")
    assert (cost["warm_up"], cost["edit_actions"]) == (False, [spec.key])


def test_a_time_keeps_the_device_that_its_artifact_was_built_on(bench, monkeypatch):
    spec = ArtifactSpec("setup-elsewhere", "setup", {}, f"{__name__}:touch")
    monkeypatch.setattr(FtL, "artifacts", lambda self, target, data, seed: {"setup": spec})
    assert bench.run(spec).reason is None
    file = bench.store.artifact(spec.name, spec.key).path / "cost.json"
    file.write_text(json.dumps({"phases_s": {"setup": 2.0}, "device_class": "cuda: A100"}))
    cell = dataclasses.replace(bench.cell("ft-l"))
    assert bench.run(cell).reason is None
    cost = bench.folder(cell).read("cost.json")
    here = cost["device_class"]
    assert cost["device_classes"] == {"setup": ["cuda: A100"], "edit": [here], "evaluate": [here]}
    assert cost["peak_memory_with_artifacts_bytes"] is None, "the artifact does not say"


def test_times_say_how_many_processes_shared_the_device_while_artifacts_were_built_or_edits_made(bench, monkeypatch):
    spec = ArtifactSpec("shared-setup", "setup", {}, f"{__name__}:timed")
    monkeypatch.setattr(FtL, "artifacts", lambda self, target, data, seed: {"setup": spec})
    cell = dataclasses.replace(bench.cell("ft-l"))
    bench.context.shared_by = 2
    assert bench.run(spec).reason is None
    bench.context.shared_by = 1
    assert bench.run(cell).reason is None
    built, cost = bench.store.artifact(spec.name, spec.key).read("cost.json"), bench.folder(cell).read("cost.json")
    here = cost["device_class"]
    assert (built["shared_by"], cost["shared_by"]) == (2, 2)
    assert cost["device_classes"]["setup"] == [built["device_class"]] == [f"{here} (shared by 2 processes)"]
    assert cost["device_classes"]["edit"] == [here]
    bench.context.shared_by = 3
    other = bench.cell("none")
    assert bench.run(other).reason is None
    assert bench.folder(other).read("cost.json")["shared_by"] == 3


def test_attaching_per_edit_run_leaves_out_what_another_edit_can_use_too(bench, monkeypatch):
    edit = ArtifactSpec("an-edit", "edit", {}, f"{__name__}:touch")
    specs = {
        "edit": edit,
        "target": ArtifactSpec("of-target", "setup", {}, f"{__name__}:touch"),
        "state": ArtifactSpec("of-edit", "setup", {}, f"{__name__}:touch", needs={"edit": edit}),
    }
    monkeypatch.setattr(FtL, "artifacts", lambda self, target, data, seed: specs)
    for spec, seconds in zip(specs.values(), (0.0, 2.0, 4.0), strict=True):
        assert bench.run(spec).reason is None
        cost = {"phases_s": {"attach": seconds}}
        (bench.store.artifact(spec.name, spec.key).path / "cost.json").write_text(json.dumps(cost))
    cell = dataclasses.replace(bench.cell("ft-l"))
    assert bench.run(cell).reason is None
    cost = bench.folder(cell).read("cost.json")
    assert (cost["phases_s"]["attach"], cost["attach_per_edit_run_s"]) == (6.0, 4.0)


def timed(spec, context, folder):
    """Build an artifact that takes a little time."""
    with context.clock.phase("setup"):
        (folder / "made").touch()


def touch(spec, context, folder):
    """Build an artifact that is nothing but a file."""
    (folder / "made").touch()


def test_a_fact_that_cannot_be_edited_costs_the_warm_up_and_not_the_cell(bench, monkeypatch):
    """As ROME cannot where the train pool comes from a table without subjects."""
    cell = bench.cell("ft-l")
    foreign = {record.id for record in bench.context.load_data(cell.data).train}
    original = FtL.edit

    def edit(self, model, requests, artifacts, context):
        if requests[0].record_id in foreign:
            raise UserError("no subject is named", fix="records with a subject")
        return original(self, model, requests, artifacts, context)

    monkeypatch.setattr(FtL, "edit", edit)
    assert bench.run(cell).reason is None
    assert bench.folder(cell).read("cost.json")["warm_up"] is False


def test_a_cell_finds_no_model_in_memory_but_its_own(bench, monkeypatch):
    """An idle one would count in its peak memory, and the two might not fit where each does."""
    held = []
    original = FtL.edit

    def edit(self, model, requests, artifacts, context):
        held.append([ref.name for ref in context._models])
        return original(self, model, requests, artifacts, context)

    monkeypatch.setattr(FtL, "edit", edit)
    for name in ("tiny/llama", "tiny/gptj"):
        assert bench.run(bench.cell("ft-l", name)).reason is None
    assert held == [["tiny/llama"]] * 2 + [["tiny/gptj"]] * 2, "a warm-up and the edit of each"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("the rate is too high", fix="choose a smaller one"), "the rate is too high → choose a smaller one"),
        (KeyError("bug"), "KeyError: 'bug'"),
    ],
)
def test_a_failed_cell_is_recorded_with_its_traceback_and_the_next_one_runs(error, reason, bench, monkeypatch):
    def fail(*_, **__):
        raise error

    cell = bench.cell("ft-l")
    with monkeypatch.context() as patch:
        patch.setattr(FtL, "_train", fail)
        assert bench.run(cell).reason == reason
    folder = bench.folder(cell)
    assert (folder.is_done, folder.failure) == (False, reason)
    assert "Traceback" in (folder.path / "log.txt").read_text()
    assert bench.run(cell).reason is None
    assert (folder.is_done, folder.failure) == (True, None)


@pytest.mark.parametrize(
    ("error", "memory", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "GPU", "OutOfMemoryError: CUDA out of memory"),
        (InsufficientMemoryError("two models do not fit", "RAM"), "RAM", "two models do not fit"),
    ],
)
def test_a_cell_that_runs_out_of_memory_has_only_failed_if_there_is_no_more_of_it(
    bench, monkeypatch, error, memory, reason
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(FtL, "_train", fail)
    cell = bench.cell("ft-l")
    job = job_of(cell, cell.seed, "cpu")
    with pytest.raises(InsufficientMemoryError, match=reason) as caught:
        bench.runner.run(job, larger={memory})
    assert caught.value.memory == memory
    assert not bench.folder(cell).is_settled
    assert bench.runner.run(job, larger={"GPU", "RAM"} - {memory}).reason == bench.folder(cell).failure == reason


def test_a_model_that_does_not_fit_on_the_gpu_may_fit_on_a_larger_one(bench, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    cell = bench.cell("ft-l")
    bench.context.forget_models()
    monkeypatch.setattr("harness.models.loading._model", full)
    with pytest.raises(InsufficientMemoryError, match="tiny/llama does not fit on cpu"):
        bench.runner.run(job_of(cell, cell.seed, "cpu"), larger={"GPU"})
    assert not bench.folder(cell).is_settled


def test_a_method_that_does_not_give_the_model_back_is_found_out(bench, monkeypatch):
    cell, other = bench.cell("ft-l"), bench.cell("none")
    with monkeypatch.context() as patch:
        patch.setattr("harness.models.weights.Snapshot.restore", lambda self: None)
        assert "did not restore the model bit for bit" in bench.run(cell).reason
    assert bench.run(other).reason is None
    metrics = bench.folder(other).read("metrics.json")
    assert metrics["generation"]["locality"]["score"] == 1.0, "the damaged model must not serve the next cell"


def test_random_weights_are_timed_and_never_scored(bench):
    cell = bench.cell("ft-l")
    random = dataclasses.replace(cell, model=dataclasses.replace(cell.model, name="tiny/mistral", weights="random"))
    assert bench.run(random).reason is None
    folder = bench.folder(random)
    assert set(folder.read("metrics.json")) == {"diagnostics"}
    assert len(pd.read_parquet(folder.path / "records.parquet")) == 0
    assert folder.read("cost.json")["phases_s"]["edit"] > 0
    assert [root.name for root in roots(random)] == []


def test_records_that_changed_since_the_plan_fail_the_cell_and_are_not_scored(home, bench):
    file = home / "records" / "counterfact.json"
    text = file.read_text()
    rows = json.loads(text)
    rows[0]["requested_rewrite"]["target_new"]["str"] = "Atlantis"
    try:
        file.write_text(json.dumps(rows))
        bench.context._data.clear()
        assert "have changed since they were planned" in bench.run(bench.cell("ft-l")).reason
    finally:
        file.write_text(text)


def test_a_cell_whose_files_change_meanwhile_is_finished_and_names_those_that_it_has_read(home, bench, monkeypatch):
    file, train = home / "records" / "counterfact.json", FtL._train
    content = file.read_bytes()

    def change(*arguments):
        file.unlink(missing_ok=True)
        return train(*arguments)

    monkeypatch.setattr(FtL, "_train", change)
    cell = bench.cell("ft-l")
    try:
        assert bench.run(cell).reason is None
    finally:
        file.write_bytes(content)
    read = bench.folder(cell).read("provenance.json")["data_files"]
    assert read == {str(file): hashlib.sha256(content).hexdigest()}


def test_a_cell_whose_reference_texts_have_changed_since_they_were_planned_fails(bench, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("")
    cell = dataclasses.replace(bench.cell("none"), fluency=fluency.reference(str(file)))
    file.write_text("\n")
    assert "texts.jsonl: has changed since the run was planned" in bench.run(cell).reason
    assert not bench.folder(cell).is_done


def test_an_artifact_that_was_made_with_another_model_is_refused_in_one_line(bench):
    cell = bench.cell("ft-l")
    (answers,) = cell.all_unedited_outputs()
    folder = bench.store.artifact(answers.name, answers.key)
    kept = folder.read("artifact.json")
    assert kept["models"]["model"] == bench.context.model_hashes(cell.model)
    assert kept["models"]["model"].keys() == {"config", "tokenizer", "weights"}
    for part in ("weights", "tokenizer"):
        other = {**kept["models"]["model"], part: "0" * 64}
        write_json(folder.path / "artifact.json", {**kept, "models": {"model": other}})
        reason = bench.run(cell).reason
        assert reason.startswith(
            f"{folder.path} was made with a different model: tiny/llama now has a different {part}"
        )
        assert f"rm -r {folder.path}" in reason


def test_provenance_names_the_files_of_every_model(bench):
    cell = bench.cell("ft-l")
    bench.run(cell)
    (model,) = bench.folder(cell).read("provenance.json")["models"]
    assert (model["name"], model["source"]) == ("tiny/llama", cell.model.source)
    assert model["weights"] == bench.context.model_hashes(cell.model)["weights"]


@pytest.mark.parametrize(
    "schedule", ["batch", {"sequential": {"block": 4, "score_at": [4]}}], ids=["batch", "sequence"]
)
def test_benchmark_tasks_are_scored_before_and_after_editing(schedule, home, built, tmp_path, monkeypatch):
    """What lm-eval asks is replaced by the norm of a matrix, which says which model was asked."""

    def ask(edited, model, task, batch_size):
        return [ItemScore(task.name, "acc", 0, float(model.value_matrix(1)[1].norm()), 1.0)]

    monkeypatch.setattr(tasks, "find_spec", lambda name: name)
    monkeypatch.setattr(scores, "ask", ask)
    monkeypatch.setattr(fluency, "_words", str.split)
    suite = write_suite(
        home / "tasks.yaml",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        capability=["facts", {"name": "perplexity", "items": 2}],
        fluency=True,
        schedule=schedule,
    )
    bench = PlanBench(suite, shutil.copytree(built, tmp_path / "store"))
    found = {}
    for label in ("none", "ft-l"):
        cell = bench.cell(label)
        assert bench.run(cell).reason is None
        found[label] = bench.folder(cell).read("metrics.json")
        again = recalled(bench.folder(cell))
        assert (again.capability, again.fluency) == (cell.capability, cell.fluency)
        assert "remarks" not in bench.folder(cell).read("provenance.json")
    for spec in bench.cell("ft-l").unedited_capability():
        write_json(bench.store.artifact(spec.name, spec.key).path / "cost.json", {"device_class": "cuda: A100"})
    edited = bench.folder(bench.cell("ft-l"))
    edited.remove()
    assert bench.run(bench.cell("ft-l")).reason is None
    here = edited.read("cost.json")["device_class"]
    remark = f"benchmark tasks were asked before editing on cuda: A100, and after it on {here}"
    assert edited.read("provenance.json")["remarks"] == [remark]
    points = ["0", "8"] if schedule == "batch" else ["0", "4", "8"]
    means = {
        label: [metrics["capability"][point]["facts"]["acc"] for point in points] for label, metrics in found.items()
    }
    assert len(set(means["none"])) == 1
    assert means["ft-l"][0] == means["none"][0]
    assert len(set(means["ft-l"])) == len(points), "the unedited model, and the edited one after each point"
    assert found["none"]["fluency"]["norm_drift"] == 0
    assert found["ft-l"]["fluency"]["norm_drift"] == pytest.approx(means["ft-l"][-1] / means["ft-l"][0] - 1, rel=1e-3)
    items = read_items(bench.folder(bench.cell("ft-l")).path / scores.FILE)
    assert [one.task for one in items[8]] == ["facts", "perplexity"]
