"""From a suite to cells: what makes an identity, what is shared, what is done, what is missing."""

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from harness import registry
from harness.api import ArtifactSpec
from harness.data.load import load
from harness.data.synthetic import upstream_rows
from harness.evaluation.capability import tasks
from harness.evaluation.capability.tasks import TaskRef
from harness.evaluation.fluency import FluencyRef
from harness.models.catalogue import CATALOGUE, ModelRef
from harness.plan.cell import Cell
from harness.plan.describe import describe
from harness.plan.estimate import of_cell
from harness.plan.job import job_of, jobs
from harness.plan.plan import Plan, roots
from harness.records import DataRef
from harness.store.store import Store
from harness.suite import load_suite
from harness.suite.load import find_suite
from harness.suite.schedule import Schedule
from tests.data.rows import write
from tests.helpers.commands import harness_here
from tests.helpers.small_suites import copy_home, small_entry, write_checkpoint, write_suite

CONVERT = "python -m harness.models.convert"


@pytest.fixture
def plan_of(home, tmp_path):
    """The plan of a suite next to the checkpoints."""

    def made(file="small.yaml", **changes) -> Plan:
        suite = write_suite(home / "other.yaml", **changes) if changes else home / file
        return Plan(load_suite(suite), Store(tmp_path / "store"))

    return made


@pytest.fixture
def cell(plan_of):
    return next(cell for cell in plan_of().runnable if cell.label == "ft-l")


CHANGES = {
    "the method's version": lambda cell: {"method": dataclasses.replace(cell.method, version=cell.method.version + 1)},
    "the method": lambda cell: {"method": dataclasses.replace(cell.method, name="none"), "hparams": {}},
    "a hyper-parameter": lambda cell: {"hparams": {**cell.hparams, "lr": 0.02}},
    "the weights of the model": lambda cell: {"model": dataclasses.replace(cell.model, sha256="0")},
    "the kind of weights": lambda cell: {"model": dataclasses.replace(cell.model, weights="random")},
    "the precision": lambda cell: {"model": dataclasses.replace(cell.model, dtype="bfloat16")},
    "what a tiny model learns": lambda cell: {"model": dataclasses.replace(cell.model, corpus=cell.data)},
    "the records": lambda cell: {"data": dataclasses.replace(cell.data, sha256="0")},
    "the number of edits": lambda cell: {"data": dataclasses.replace(cell.data, edits=7)},
    "the prompt template": lambda cell: {"data": dataclasses.replace(cell.data, template="paper")},
    "the protocols": lambda cell: {"protocols": cell.protocols[:1]},
    "the schedule": lambda cell: {"schedule": Schedule("sequential", 4, (8,))},
    "the size of a block": lambda cell: {"schedule": Schedule("sequential", 2, (8,))},
    "the points that are scored": lambda cell: {"schedule": Schedule("sequential", 4, (4, 8))},
    "the seed": lambda cell: {"seed": 1},
    "rows per forward pass": lambda cell: {"eval_batch": 17},
    "that the weights are kept": lambda cell: {"keep_weights": True},
    "metrics of generated text": lambda cell: {"fluency": FluencyRef()},
    "its reference texts": lambda cell: {"fluency": FluencyRef(sha256="0")},
    "a benchmark task": lambda cell: {"capability": (TaskRef("facts", sha256="0"),)},
    "the rows of a benchmark task": lambda cell: {"capability": (TaskRef("facts", sha256="1"),)},
}

NO_CHANGES = {
    "the label": lambda cell: {"label": "again"},
    "the name of a variant": lambda cell: {"variant": "same values"},
    "where values come from": lambda cell: {"sources": {}},
    "where the model lies": lambda cell: {"model": dataclasses.replace(cell.model, source="/elsewhere")},
    "where the records lie": lambda cell: {"data": dataclasses.replace(cell.data, source="/elsewhere")},
    "a name in a table": lambda cell: {"method": dataclasses.replace(cell.method, title="FT-L!", family="other")},
    "that FLOPs are counted": lambda cell: {"count_flops": 0},
    "the order of hyper-parameters": lambda cell: {"hparams": dict(reversed(cell.hparams.items()))},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_results_changes_the_id(what, cell):
    assert dataclasses.replace(cell, **CHANGES[what](cell)).cell_id != cell.cell_id


def test_no_two_changes_make_one_id(cell):
    assert len({dataclasses.replace(cell, **change(cell)).cell_id for change in CHANGES.values()}) == len(CHANGES)


@pytest.mark.parametrize("what", NO_CHANGES)
def test_what_changes_no_result_leaves_the_id(what, cell):
    assert dataclasses.replace(cell, **NO_CHANGES[what](cell)).cell_id == cell.cell_id


def test_every_field_of_a_cell_is_either_in_the_id_or_known_to_change_nothing(cell):
    """A field that is added later is named here, on purpose."""
    in_id = {"method", "backend", "hparams", "model", "data", "protocols", "schedule", "seed", "eval_batch"}
    in_id |= {"keep_weights", "classic", "fluency", "capability"}
    assert {field.name for field in dataclasses.fields(cell)} == in_id | {"label", "variant", "sources", "count_flops"}


def test_the_version_of_a_protocol_is_in_the_id(cell, monkeypatch):
    name = cell.protocols[0]
    newer = type("Newer", (), {"version": registry.protocols.get(name).version + 1})()
    fresh = dataclasses.replace(cell)
    monkeypatch.setitem(registry.protocols._items, name, newer)
    assert fresh.cell_id != cell.cell_id


def test_another_recipe_of_an_artifact_makes_another_cell(cell, monkeypatch):
    def artifacts_of(recipe):
        return lambda self: {"net": ArtifactSpec("net", "setup", {"recipe": recipe}, "nowhere:build")}

    ids = []
    for recipe in (1, 2):
        monkeypatch.setattr(Cell, "artifacts", artifacts_of(recipe))
        ids.append(dataclasses.replace(cell).cell_id)
    assert ids[0] != ids[1]


def test_device_threads_and_launcher_are_not_in_the_id(plan_of):
    ids = {cell.cell_id for cell in plan_of().runnable}
    assert {cell.cell_id for cell in plan_of(threads=2, device="auto").runnable} == ids
    assert {cell.cell_id for cell in plan_of(launch="a100").runnable} == ids


def test_a_copy_of_records_and_models_makes_the_same_cells(home, plan_of, tmp_path):
    for name in ("llama", "gptj", "records"):
        shutil.copytree(home / name, tmp_path / name)
    moved = write_suite(tmp_path / "small.yaml")
    there = Plan(load_suite(moved), Store(tmp_path / "store")).runnable
    assert [cell.folder for cell in there] == [cell.folder for cell in plan_of().runnable]


def test_the_records_decide_the_id_and_not_the_rest_of_their_file(home, plan_of, tmp_path):
    import json

    folder = tmp_path / "records"
    shutil.copytree(home / "records", folder)
    file = folder / "counterfact.json"
    rows = json.loads(file.read_text())
    ids = {cell.cell_id for cell in plan_of().runnable}
    data = {"name": "counterfact", "path": str(folder), "edits": 8, "train": 8, "unrelated": 4}
    rows[0]["requested_rewrite"]["target_new"]["str"] = "Atlantis"
    file.write_text(json.dumps(rows))
    changed = {cell.cell_id for cell in plan_of(datasets=[data]).runnable}
    assert not changed & ids


def test_cells_are_the_product_of_the_axes_one_model_after_the_other(plan_of):
    made = plan_of(prompts=["none", "paper"], seeds=[0, 1])
    assert len(made.cells) == len(made.runnable) == 2 * 2 * 2 * 2
    models = [cell.model.name for cell in made.runnable]
    assert models == ["tiny/llama"] * 8 + ["tiny/gptj"] * 8
    assert len({cell.folder for cell in made.runnable}) == 16
    assert {planned.title[3] for planned in made.cells} == {"", "seed 1", "prompt paper", "prompt paper, seed 1"}


def test_one_method_under_two_labels_is_two_folders(plan_of):
    """The manifest names both, so both must come to be."""
    made = plan_of(methods=["none", {"name": "none", "label": "again"}])
    assert [cell.label for cell in made.runnable] == ["none", "again"] * 2
    assert len({cell.cell_id for cell in made.runnable}) == 2


def test_methods_on_one_model_share_the_unedited_answers_and_each_need_is_built_before_its_user(plan_of):
    made = plan_of()
    assert [spec.name for spec, _ in made.artifacts(made.runnable)] == ["unedited-outputs"] * 2
    seen = set()
    for spec, _ in made.artifacts(made.runnable):
        assert all(need.key in seen for need in spec.needs.values())
        seen.add(spec.key)


def test_one_edit_of_the_plug_in_serves_all_target_models_of_a_data_set(tmp_path):
    suite = load_suite("suites/main_table.yaml", scale="mini", only=["method=onceedit"], edits=5)
    made = Plan(suite, Store(tmp_path))
    edits = {spec.key for cell in made.runnable for spec in cell.artifacts().values() if spec.kind == "edit"}
    assert (len(made.runnable), len(edits)) == (6, 2)
    order = [spec.key for spec, _ in made.artifacts(made.runnable)]
    for cell in made.runnable:
        for root in roots(cell):
            places = [order.index(spec.key) for spec in root.closure()]
            assert places[-1] == max(places)
    models = [spec for spec, _ in made.artifacts(made.runnable) if spec.kind == "model"]
    assert len(models) == 2 * 4, "three target models and one plug-in, each trained once per data set"


def test_random_weights_need_no_unedited_answers(plan_of):
    made = plan_of(models=[{"name": "llama2-7b", "weights": "random"}])
    assert [root.name for cell in made.runnable for root in roots(cell)] == []


def test_a_finished_cell_is_not_to_do_and_a_failed_one_is(plan_of):
    made = plan_of()
    first, second, *rest = made.runnable
    with made.store.cell(first.folder).writing():
        pass
    with made.store.cell(second.folder).failing("it rained"):
        pass
    assert made.todo() == [second, *rest]
    made.keep(lambda cell: made.store.cell(cell.folder).failure is not None)
    assert made.todo() == [second]


def test_what_is_missing_is_said_once_and_keeps_its_place_in_the_list(home, tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    made = Plan(load_suite("suites/main_table.yaml"), Store(tmp_path))
    methods = [entry.label for entry in made.suite.methods]
    assert {planned.title[:3] for planned in made.cells} == {
        (method, model, data)
        for method in methods
        for model in ("llama2-7b", "mistral-7b-v0.1", "gpt-j-6b")
        for data in ("zsre", "counterfact")
    }
    assert len(methods) >= 7
    assert made.runnable == []
    reasons = made.missing()
    assert len(reasons) == len(set(reasons))
    assert sum("no folder given" in reason for reason in reasons) == 2


def test_a_method_without_probabilities_is_noted_where_they_are_compared(plan_of, monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: name)
    once = {"name": "onceedit", "plugin": "tiny/tinyllama"}
    methods = ["ft-l", once, {**once, "decoder": "owner", "label": "look-up"}]
    note, *_ = plan_of(methods=methods, classic=True, capability=["facts", "perplexity"]).notes()
    assert note.startswith(
        "look-up: no scores on Facts, Perplexity, CounterFact's metrics by probability: decoder 'owner'"
    )
    assert not any("no scores" in note for note in plan_of(methods=methods).notes())


def test_what_a_method_says_of_itself_on_several_models_is_noted_once(plan_of):
    once = {"name": "onceedit", "plugin": "tiny/tinyllama"}
    methods = ["ft-l", once, {**once, "decoder": "gac", "label": "GaC"}, {**once, "relative": "plain", "label": "W"}]
    assert plan_of(models=["tiny/llama", "tiny/gptj"], methods=methods).notes() == [
        "onceedit on tiny/llama, tiny/gptj: relative representations 'whitened', temperature 40",
        "W on tiny/llama, tiny/gptj: relative representations 'plain'",
    ]


def test_rows_of_a_benchmark_task_that_cannot_be_asked_are_noted(plan_of, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "find_spec", lambda name: name)
    file = tmp_path / "facts.jsonl"
    rows = [{"question": "Who?", "choices": ["a", last], "answer": 0} for last in ("b", "")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = plan_of(capability=[{"name": "facts", "path": str(file)}]).notes()
    assert note == f"capability task 'facts': 1 of the rows of {file} left out, because a choice has no text"


def test_a_weight_file_that_must_be_downloaded_is_a_note_and_not_an_obstacle(home, plan_of, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = plan_of(models=["llama2-7b"])
    assert made.runnable
    assert made.notes() == ["meta-llama/Llama-2-7b-hf is not on this machine (13 GB to download)"]


def test_a_checkpoint_that_cannot_be_used_is_one_reason_and_the_cells_of_other_models_can_run(home, tmp_path):
    folder = copy_home(home, tmp_path)
    config = json.loads((folder / "gptj" / "config.json").read_text())
    (folder / "gptj" / "config.json").write_text(json.dumps(config | {"vocab_size": 77}))
    made = Plan(load_suite(folder / "small.yaml"), Store(tmp_path / "store"))
    (reason,) = made.missing()
    assert "gptj has 3 tensors of other shapes than its config.json says, transformer.wte.weight first" in reason
    assert {planned.title[:2]: planned.missing for planned in made.cells if planned.missing} == {
        ("none", "tiny/gptj"): (reason,),
        ("ft-l", "tiny/gptj"): (reason,),
    }
    assert {cell.model.name for cell in made.runnable} == {"tiny/llama"}


@pytest.fixture
def hub_model(home, tmp_path, monkeypatch):
    """A model on a hub that is a folder here: `main` is one commit, `v2` another one."""
    monkeypatch.setitem(CATALOGUE, "small-llama", small_entry("llama", hub_id="me/small"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--me--small"

    def download(hub_id, revision, **_):
        commit = {"main": "aaa", "v2": "bbb"}.get(revision, revision)
        folder = cached / "snapshots" / commit
        shutil.copytree(home / "llama", folder)
        if commit == "bbb":
            shutil.copy(write_checkpoint(tmp_path / "other", "llama", seed=1) / "model.safetensors", folder)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / revision).write_text(commit)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return cached


def test_a_hub_model_is_downloaded_before_its_cells_are_named_after_its_files(hub_model, plan_of):
    before = plan_of(models=["small-llama", {"name": "small-llama", "revision": "v2"}], methods=["none"])
    assert [model.is_to_download for model in before.models()] == [True, True]
    after = before.with_models_here()
    assert [(model.revision, model.is_to_download) for model in after.models()] == [("aaa", False), ("bbb", False)]
    assert len({cell.cell_id for cell in after.runnable}) == len(after.runnable) == 2
    assert after.with_models_here() is after


def test_a_branch_that_moves_makes_new_cells_and_unedited_answers_and_the_plan_prints_the_commit(hub_model, plan_of):
    plans = [plan_of(models=["small-llama"], methods=["none"]).with_models_here()]
    plan_of(models=[{"name": "small-llama", "revision": "v2"}], methods=["none"]).with_models_here()
    (hub_model / "refs" / "main").write_text("bbb")
    plans.append(plan_of(models=["small-llama"], methods=["none"]))
    ids, answers = zip(
        *(({cell.cell_id for cell in plan.runnable}, plan.runnable[0].unedited_outputs(8).key) for plan in plans),
        strict=True,
    )
    assert not ids[0] & ids[1]
    assert answers[0] != answers[1]
    printed = io.StringIO()
    describe(plans[1], Console(file=printed, width=200))
    assert "model small-llama: me/small at commit bbb" in printed.getvalue()


SEQUENCE = {"sequential": {"block": 2, "score_at": [2, 5]}}


def test_a_sequential_cell_needs_the_unedited_answers_at_each_of_its_points(plan_of):
    cell = plan_of(schedule=SEQUENCE).runnable[0]
    assert cell.schedule == Schedule("sequential", 2, (2, 5, 8))
    answers = [root for root in roots(cell) if root.name == "unedited-outputs"]
    assert [answer.identity["data"].get("so_far") for answer in answers] == [2, 5, None]
    batch = plan_of().runnable[0]
    assert answers[-1].key == batch.unedited_outputs(8).key, "those at the end are the same as of a batch"


def test_a_method_that_makes_all_edits_in_one_act_is_refused_in_sequence_with_one_line(plan_of, home):
    theirs = {"name": "grace", "backend": "easyedit"}
    made = plan_of(schedule=SEQUENCE, methods=["none", {"name": "ft-l", "layer": 1}, theirs])
    reasons = [reason for planned in made.cells if planned.cell is None for reason in planned.missing]
    assert "method 'grace' makes all its edits at once and cannot continue from them in a sequence" in reasons
    assert {cell.label for cell in made.runnable} == {"none", "ft-l"}


def test_what_onceedit_needs_in_sequence_is_a_plug_in_for_each_block(plan_of):
    plug_in = {"name": "onceedit", "plugin": "tinyllama-1.1b"}
    cells = [plan_of(schedule=schedule, methods=[plug_in]).runnable[0] for schedule in (SEQUENCE, "batch")]
    edits = [[role for role in cell.artifacts() if role.startswith("plugin_edit")] for cell in cells]
    assert edits == [
        ["plugin_edit/2", "plugin_edit/4", "plugin_edit/5", "plugin_edit/6", "plugin_edit/8"],
        ["plugin_edit"],
    ]


def test_points_beyond_the_edits_are_said_and_fall_on_the_end(plan_of):
    made = plan_of(schedule={"sequential": {"block": 4, "score_at": [4, 10, 20]}})
    assert made.notes() == ["counterfact: score_at 10, 20 lies beyond its 8 edits; the last point moves there"]
    assert {cell.schedule for cell in made.runnable} == {Schedule("sequential", 4, (4, 8))}


def test_every_method_of_the_sequential_suite_can_go_on_from_its_edits(tmp_path):
    made = Plan(load_suite("suites/sequential.yaml", scale="mini"), Store(tmp_path))
    assert not [reason for reason in made.missing() if "in sequence" in reason]
    assert {planned.cell.data.edits for planned in made.cells if planned.cell} == {100}
    assert {planned.cell.schedule.score_at for planned in made.cells if planned.cell} == {(10, 20, 50, 100)}


def test_each_point_adds_to_the_estimate(plan_of):
    batch, sequence = (plan_of(**more).runnable[0] for more in ({"eval_batch": 16}, {"schedule": SEQUENCE}))
    assert of_cell(sequence, "cpu").seconds > of_cell(batch, "cpu").seconds


def test_estimates_grow_with_model_and_edits(plan_of):
    small = plan_of().runnable[0]
    large = plan_of(models=[{"name": "llama2-7b", "weights": "random"}]).runnable[0]
    assert 13 * 2**30 < of_cell(large, "cpu").memory_bytes < 20 * 2**30
    assert of_cell(small, "cpu").memory_bytes < 2 * 2**30
    assert of_cell(large, "cuda").seconds < of_cell(large, "cpu").seconds
    assert of_cell(small, "cpu").seconds < of_cell(large, "cpu").seconds


def test_the_same_suite_read_twice_has_the_same_ids(home, plan_of):
    text = yaml.safe_load((home / "small.yaml").read_text())
    reordered = dict(reversed(text.items()))
    (home / "reordered.yaml").write_text(yaml.safe_dump(reordered, sort_keys=False))
    assert [c.cell_id for c in plan_of("reordered.yaml").runnable] == [c.cell_id for c in plan_of().runnable]


def test_a_gpu_that_is_elsewhere_is_not_missed_here(home, tmp_path):
    suite = load_suite(write_suite(home / "other.yaml", device="cuda"))
    assert Plan(suite, Store(tmp_path), elsewhere="cuda").obstacle() == ""


def test_the_estimate_of_a_plan_includes_the_artifacts_that_are_to_be_built(tmp_path):
    out = harness_here("plan", "main_table", "--scale", "mini", "--store", tmp_path).stdout
    artifacts, cells = re.search(r"of work on cpu: artifacts (\d+) min, cells (\d+) min", out).groups()
    total = int(re.search(r"about (\d+) min of work", out)[1])
    assert total - int(artifacts) - int(cells) in (0, 1)
    assert int(artifacts) >= 2, "eight tiny models are trained"
    assert 8 <= total <= 25, "measured: 11 minutes on two quiet cores"


def test_methods_that_pass_more_through_the_model_take_longer(plan_of):
    plan = Plan(load_suite(find_suite("main_table"), scale="mini"), Store(Path("nowhere")))
    taken = {cell.label: of_cell(cell, "cpu").seconds for cell in plan.runnable if cell.model.name == "tiny/llama"}
    assert taken["none"] < taken["mend"] < taken["ft-l"] < taken["memit"] < taken["rome"]


def test_the_title_of_an_artifact_names_its_records_and_its_model():
    ref = ModelRef("tiny/llama", "trained", corpus=DataRef("zsre", "synthetic", edits=1, sha256="ab"))
    assert job_of(ref.artifacts()["model"], 0, "cpu").title == "artifact tiny-model zsre tiny/llama"


def test_no_two_jobs_have_the_same_title(home, plan_of):
    data = {"name": "counterfact", "path": str(home / "records"), "train": 8, "unrelated": 4}
    plan = plan_of(prompts=["none", "paper"], seeds=[0, 1], datasets=[{**data, "edits": 8}, {**data, "edits": 6}])
    titles = [job.title for job in jobs(plan)]
    assert len(set(titles)) == len(titles)
    assert any(title.startswith("ft-l on tiny/llama, counterfact, prompt paper, seed 1 (") for title in titles)


def with_long_paraphrase(folder):
    """Twelve records of which the third has a paraphrase beyond the context of the small models."""
    rows = upstream_rows("counterfact")[:12]
    rows[2] = rows[2] | {"paraphrase_prompts": ["word " * 300]}
    write(folder / "long.json", rows)
    return {"name": "counterfact", "path": str(folder), "edits": 8, "train": 0, "unrelated": 0}


def test_records_longer_than_a_models_context_are_refused_by_name(plan_of, tmp_path):
    made = plan_of(datasets=[with_long_paraphrase(tmp_path / "long")])

    assert made.runnable == []
    assert [reason.partition(" (256 positions): counterfact record 2 (")[0] for reason in made.missing()] == [
        "too long for tiny/llama",
        "too long for tiny/gptj",
    ]


def test_records_too_long_for_one_model_are_replaced_for_all_of_them_on_request(plan_of, home, tmp_path):
    data = with_long_paraphrase(tmp_path / "long")
    longer = shutil.copytree(home / "llama", tmp_path / "longer")
    config = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    models = [
        {"name": "tiny/llama", "weights": "pretrained", "path": str(longer)},
        {"name": "tiny/gptj", "weights": "pretrained", "path": str(home / "gptj")},
    ]

    made = plan_of(datasets=[data], models=models, too_long="drop")
    only = Plan(load_suite(home / "other.yaml", only=["model=tiny/llama"]), made.store)

    (ref,) = {cell.data for cell in (*made.runnable, *only.runnable)}
    assert [record.id for record in load(ref).edits] == ["0", "1", "3", "4", "5", "6", "7", "8"]
    assert "counterfact: 1 left out, because a model of the suite cannot read them: 2" in made.notes()


def test_a_strict_run_stops_at_a_checkpoint_that_cannot_be_used_with_the_command_that_helps(home, tmp_path):
    folder = copy_home(home, tmp_path)
    (folder / "gptj" / "model.safetensors").rename(folder / "gptj" / "pytorch_model.bin")
    ran = harness_here("run", folder / "small.yaml", "--strict", "--store", tmp_path / "store")
    assert ran.returncode == 2
    assert (
        f"gptj holds pickled weights (pytorch_model.bin), which are never loaded → {CONVERT} {folder / 'gptj'}\n"
        in (ran.stderr)
    )
    assert not list((tmp_path / "store").glob("cells/*"))
    shutil.rmtree(folder / "llama")
    (folder / "llama").mkdir()
    ran = harness_here("run", folder / "small.yaml", "--store", tmp_path / "store")
    assert "(and 1 more of these) → python -m harness plan" in ran.stderr


def test_the_state_of_a_cell_with_a_mistake_in_its_entry_is_not_the_name_of_the_file(plan_of, home):
    printed = io.StringIO()
    plan = plan_of(datasets=[{"name": "counterfact", "path": str(home / "small.yaml"), "edits": 8}])
    describe(plan, Console(file=printed, width=200))
    assert "│ cannot run │" in printed.getvalue()
    (reason,) = plan.missing()
    assert "small.yaml" in reason
    assert "→" in reason


def test_entries_of_one_dataset_are_told_apart_by_what_differs(plan_of, home):
    common = {"name": "counterfact", "path": str(home / "records"), "edits": 8, "train": 8}
    made = [plan_of(datasets=[{**common, "unrelated": n} for n in numbers]) for numbers in ((2, 3), (2,))]
    assert {planned.title[2:] for planned in made[0].cells} == {
        ("counterfact", "unrelated 2"),
        ("counterfact", "unrelated 3"),
    }
    assert {planned.title[2:] for planned in made[1].cells} == {("counterfact", "")}
    printed = io.StringIO()
    for plan in made:
        describe(plan, Console(file=printed, width=200))
    assert printed.getvalue().count("setting") == 1
