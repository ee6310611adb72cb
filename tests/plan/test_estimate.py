"""Estimates: memory from what methods declare, time from finished cells where there are some."""

import dataclasses
import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from harness import registry
from harness.api import Method
from harness.files import write_json
from harness.memory import Memory
from harness.models.catalogue import reference
from harness.plan import estimate, history
from harness.plan.describe import describe
from harness.plan.estimate import CUDA_LIBRARIES_BYTES, LIBRARIES_BYTES, of_artifact, of_cell
from harness.plan.plan import Plan
from harness.records import DataRef
from harness.store.store import Store
from harness.suite import load_suite
from harness.suite.hparams import resolve
from tests.helpers.small_suites import write_suite

GB = 1e9
PROCESSOR = "AMD EPYC"


@pytest.fixture
def plan_of(home, tmp_path, monkeypatch):
    """Plans with one store, on a machine with a processor of a known name."""
    monkeypatch.setattr(history, "processor", lambda: PROCESSOR)

    def made(**changes) -> Plan:
        return Plan(load_suite(write_suite(home / "other.yaml", **changes)), Store(tmp_path / "store"))

    return made


@pytest.fixture
def cell(plan_of):
    return next(cell for cell in plan_of().runnable if cell.label == "ft-l")


def finish(store, cell, seconds, evaluate_s=1.0, **cost):
    """Put a finished cell into a store that took so many seconds."""
    began = datetime(2026, 1, 2, tzinfo=UTC)
    origin = {"started": began.isoformat(), "finished": (began + timedelta(seconds=seconds)).isoformat()}
    taken = {
        "phases_s": {"edit": 1.0, "evaluate": evaluate_s},
        "edits": cell.data.edits,
        "device": "cpu",
        "device_class": f"cpu: {PROCESSOR} × 1 threads",
        "threads": 1,
        "citable": True,
    }
    with store.cell(cell.folder).writing() as folder:
        for name, content in (("cell", cell.description()), ("cost", {**taken, **cost}), ("provenance", origin)):
            write_json(folder / f"{name}.json", content)


def labelled(plan, label, architecture="llama"):
    return next(cell for cell in plan.runnable if (cell.label, cell.model.name) == (label, f"tiny/{architecture}"))


def with_hparams(name: str, model: str, backend: str = "native", **hparams: object) -> Method:
    """A method with its own hyper-parameters for a catalogue model."""
    method = registry.find_method(name, backend)
    return method(method.Hparams.model_validate(resolve(name, model, hparams, backend=backend).values))


def declared(name: str, model: str, edits: int = 1000, backend: str = "native", **hparams: object) -> Memory:
    """What it declares."""
    data = DataRef("counterfact", "synthetic", edits=edits, train=edits, sha256="ab")
    return with_hparams(name, model, backend, **hparams).memory(reference(model, weights="random"), data, 16)


def test_an_edit_and_its_evaluation_are_not_in_memory_together(cell, monkeypatch):
    method = registry.find_method("ft-l")
    monkeypatch.setattr(method, "memory", lambda *_: Memory())
    weights, answers = cell.model.footprint.weights, cell.model.footprint.answering(cell.eval_batch)
    assert of_cell(cell, "cpu").memory_bytes == pytest.approx(LIBRARIES_BYTES + weights + answers, abs=2)
    need = Memory(kept={"a": 1e9, "b": 2e9}, edit={"c": 5e9}, evaluate={"d": 3e9}, processes=1)
    monkeypatch.setattr(method, "memory", lambda *_: need)
    assert of_cell(cell, "cpu").memory_bytes == pytest.approx(2 * LIBRARIES_BYTES + weights + 8e9, abs=2)


def test_on_a_gpu_the_node_holds_the_libraries_and_a_checkpoint_that_is_being_loaded(cell, monkeypatch):
    monkeypatch.setattr(registry.find_method("ft-l"), "memory", lambda *_: Memory(kept={"a": 1e9}, edit={"c": 5e9}))
    needed, weights = of_cell(cell, "cuda"), cell.model.footprint.weights
    assert needed.gpu_bytes == pytest.approx(weights + 6e9, abs=2)
    assert needed.memory_bytes == pytest.approx(CUDA_LIBRARIES_BYTES + weights, abs=2)


def test_methods_declare_what_is_known_of_7b_models():
    """By hand from the shapes: 6 layers of 16384² in float64; W of Llama2-7B is 4096 × 11008, 180 MB in float32."""
    memit = declared("memit", "gpt-j-6b")
    assert memit.edit["covariance factors"] == 6 * 16384**2 * 8
    assert declared("rome", "llama2-7b").edit["covariance factors"] == 0, "its file says moments: identity"
    w = 4096 * 11008 * 4
    one, two = (declared("wise", "llama2-7b", edits).kept["side memories"] for edits in (500, 1000))
    assert (one, two) == (2 * w, 2 * 2 * w), "two shards, as long as they are not merged, and the state"
    assert declared("ft-l", "llama2-7b").kept["edited matrix"] == w * 1.5, "the bf16 copy and the float32 matrix"
    assert declared("mend", "llama2-7b").kept["hypernetwork"] == 2 * 4 * (4096 + 11008) * 1920 * 4
    assert declared("onceedit", "llama2-7b").kept["edited plug-in"] == pytest.approx(1.1e9 * 4, rel=0.01)
    assert declared("none", "llama2-7b") == Memory()


@pytest.mark.parametrize("name", registry.implementations("easyedit").names())
def test_an_adapter_of_another_code_base_needs_its_own_process_and_a_float32_model(name):
    need = declared(name, "llama2-7b", 10, "easyedit")
    assert need.processes == 1
    assert need.kept["the worker's model"] == 4 * reference("llama2-7b", weights="random").spec.parameters


def test_an_adapter_needs_what_its_method_needs_and_what_easyedit_does_in_another_way():
    """By hand: LoRA hands over all blocks of Llama2-7B; AlphaEdit has two 14336² matrices for each of five layers of Llama3-8B."""
    lora, alphaedit = (
        declared(*named, backend="easyedit") for named in (("lora", "llama2-7b"), ("alphaedit", "llama3-8b"))
    )
    assert lora.kept["weights handed over"] == declared("lora", "llama2-7b").kept["edited matrices"] > 35 * GB
    assert "edited matrices" not in lora.kept
    assert alphaedit.kept["projections and earlier keys"] == 5 * 2 * 14336**2 * 4
    assert alphaedit.edit["null spaces"] == 4 * 14336**2 * 8
    whole = declared("memit", "gpt-j-6b", backend="easyedit").edit["activations"]
    own = declared("memit", "gpt-j-6b", micro_batch=1).edit["activations"]
    assert whole > own, "whole rows, in float32"
    many = declared("ft-l", "llama2-7b", backend="easyedit", batch=100, micro_batch=1)
    assert many.edit["logits"] == 100 * declared("ft-l", "llama2-7b", batch=100, micro_batch=1).edit["logits"]


def test_easyedit_runs_whole_rows_through_all_blocks_one_edit_after_the_other():
    """GRACE of EasyEdit makes 50 passes forward and backward of a row for each edit."""
    ours, theirs = (with_hparams("grace", "llama2-7b", backend).hparams for backend in ("native", "easyedit"))
    assert (theirs.passes_per_edit, theirs.steps_per_edit, theirs.share_of_blocks(32)) == (150, 50, 1)
    assert ours.passes_per_edit * ours.share_of_blocks(32) < 10
    rome, memit = (with_hparams(name, "gpt-j-6b", "easyedit").hparams for name in ("rome", "memit"))
    assert rome.share_of_blocks(28) == memit.share_of_blocks(28) == 1
    assert memit.steps_per_edit == memit.v_steps
    assert memit.passes_per_edit > 2 * with_hparams("memit", "gpt-j-6b").hparams.passes_per_edit
    ft_l = with_hparams("ft-l", "llama2-7b", "easyedit", batch=5).hparams
    assert ft_l.steps_per_edit == ft_l.steps / 5


def test_training_a_plug_in_needs_its_weights_four_times_over_and_half_of_that_if_its_embeddings_are_frozen(plan_of):
    plug_in = {"name": "onceedit", "plugin": {"name": "qwen2.5-1.5b", "weights": "random"}}
    sizes = []
    for embeddings in ("trained", "frozen"):
        plan = plan_of(methods=[{**plug_in, "plugin_embeddings": embeddings}], models=["tiny/llama"])
        spec = next(spec for spec, _ in plan.artifacts(plan.runnable) if spec.name == "plugin-edit")
        sizes.append(spec.memory["gradients and Adam"])
        assert of_artifact(spec, "cuda").gpu_bytes > 4 * 4 * 1.5 * GB - 3 * 151936 * 1536 * 4 * len(sizes)
    assert sizes[0] - sizes[1] == 3 * 151936 * 1536 * 4


def test_a_cell_takes_as_long_as_a_finished_one_of_the_same_method_and_model_whatever_its_seed(plan_of):
    earlier, later = plan_of(), plan_of(seeds=[1])
    finish(earlier.store, labelled(earlier, "ft-l"), seconds=50)
    needed = of_cell(labelled(later, "ft-l"), "cpu", later.history)
    assert needed.basis == "finished cells"
    assert needed.seconds == pytest.approx(50)
    assert of_cell(labelled(later, "ft-l", "gptj"), "cpu", later.history).basis == "assumed throughput"


def test_the_time_of_a_finished_cell_is_scaled_to_the_number_of_edits(plan_of, monkeypatch):
    monkeypatch.setattr(estimate, "START_S", 0)
    few = plan_of()
    finish(few.store, labelled(few, "ft-l"), seconds=40)
    data = {"name": "counterfact", "path": few.suite.datasets[0].source, "edits": 16, "train": 8, "unrelated": 4}
    more = plan_of(datasets=[data])
    assert of_cell(labelled(more, "ft-l"), "cpu", more.history).seconds == pytest.approx(80)


def test_benchmark_tasks_of_a_finished_cell_are_counted_once(plan_of):
    """What they take follows from their items, which may be others in the next suite."""
    plain, asking = plan_of(), plan_of(capability=["facts"], seeds=[1])
    before = dataclasses.replace(labelled(plain, "ft-l"), capability=labelled(asking, "ft-l").capability)
    finish(plain.store, before, seconds=80, capability_s=30.0)
    needed, without = (of_cell(labelled(plan, "ft-l"), "cpu", plain.history) for plan in (asking, plan_of(seeds=[1])))
    assert without.basis == needed.basis == "finished cells"
    assert without.seconds == pytest.approx(50)
    assert needed.seconds > 50


def test_a_method_without_finished_cells_gets_the_throughput_at_which_the_model_answered(plan_of):
    plan = plan_of()
    cell = labelled(plan, "ft-l")
    finish(plan.store, labelled(plan, "none"), seconds=100, evaluate_s=20.0)
    needed = of_cell(cell, "cpu", plan_of().history)
    assert needed.basis == "measured throughput"
    questions = estimate.QUESTIONS_PER_EDIT * 8 * len(cell.protocols)
    hparams = cell.planned_method.hparams
    passes = hparams.passes_per_edit * hparams.share_of_blocks(cell.model.footprint.n_layers) * 8
    assert needed.seconds == pytest.approx(estimate.START_S + 20.0 * (questions + passes) / questions)


@pytest.mark.parametrize(
    "cost",
    [
        {"device": "cuda", "device_class": "cuda: A100"},
        {"device_class": "cpu: another × 1 threads"},
        {"threads": 2},
        {"citable": False},
    ],
)
def test_a_cell_of_another_class_of_device_or_of_an_interrupted_run_does_not_count(plan_of, cost):
    plan = plan_of()
    finish(plan.store, labelled(plan, "ft-l"), seconds=1e6, **cost)
    assert of_cell(labelled(plan, "ft-l"), "cpu", plan_of().history).basis == "assumed throughput"


def test_other_hyper_parameters_are_another_method(plan_of):
    plan = plan_of()
    finish(plan.store, labelled(plan, "ft-l"), seconds=1e6)
    other = plan_of(methods=[{"name": "ft-l", "layer": 1, "steps": 30, "batch": 4, "lr": 0.01}])
    assert of_cell(labelled(other, "ft-l"), "cpu", other.history).basis == "measured throughput"


def test_the_plan_says_where_its_times_come_from_and_what_its_largest_cell_holds(plan_of):
    plan = plan_of()
    finish(plan.store, labelled(plan, "ft-l"), seconds=50)
    file = io.StringIO()
    describe(plan_of(seeds=[1]), Console(file=file, width=200))
    text = " ".join(file.getvalue().split())
    assert "times of 1 cell from finished cells of the same method and model" in text
    assert "1 cell from operation counts at the throughput of finished cells on the same model" in text
    assert "2 cells from a rough guess (operation counts at an assumed speed)" in text
    assert "memory of the largest, " in text
    assert re.search(r"model: weights \d+ MiB; kept: edited matrix", text)
