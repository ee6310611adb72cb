"""Cells whose layers are traced: the plan adds the trace, the cell edits the layer it says, and everything shows which."""

import pytest

from harness.examine import explain
from harness.store.mlflow_content import params
from harness.tracing import build
from harness.tracing.artifact import NAME
from harness.tracing.trace import Trace
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite

TRACED = {"traced": {"facts": 6, "samples": 2}}
ROME = {"name": "rome", "v_steps": 3, "prefixes": [[5, 1]], "moments": "train_prompts", "moments_ridge": 0.1}
FT_L = {"name": "ft-l", "steps": 3, "batch": 4, "lr": 0.01}
METHODS = [
    {"name": "trace", "facts": 6, "samples": 2},
    {**ROME, "label": "rome-traced", "layers": TRACED},
    {**ROME, "label": "rome-0", "layers": [0]},
    {**ROME, "label": "rome-1", "layers": [1]},
    {**FT_L, "label": "ft-l-traced", "layer": TRACED},
]


@pytest.fixture(scope="module")
def bench(home, tmp_path_factory):
    """A random model knows no fact, so here it counts as knowing all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_known", lambda model, candidates: iter(candidates))
        suite = write_suite(home / "traced.yaml", name="traced", methods=METHODS)
        made = PlanBench(suite, tmp_path_factory.mktemp("store"))
        for cell in made.plan.runnable:
            if cell.model.name == "tiny/llama":
                assert made.run(cell).reason is None
        yield made


def trace_of(bench, cell, role):
    spec = cell.artifacts()[role]
    assert spec.name == NAME
    return Trace.load(bench.context.artifact(spec))


def test_all_cells_share_one_trace_of_train_records(bench):
    cells = [bench.cell(label) for label in ("trace", "rome-traced", "ft-l-traced")]
    keys = {cell.artifacts()[role].key for cell, role in zip(cells, ("trace", "layers", "layer"), strict=True)}
    assert len(keys) == 1
    data = bench.context.load_data(cells[0].data)
    traced = [fact.record_id for fact in trace_of(bench, cells[0], "trace").facts]
    assert len(traced) == 6
    assert set(traced) <= {record.id for record in data.train}
    assert not set(traced) & {record.id for record in data.edits}


def test_a_traced_layer_gives_the_results_of_the_same_layer_written_as_a_number(bench):
    traced = bench.cell("rome-traced")
    layer = trace_of(bench, traced, "layers").decisive_layer()
    records = {
        label: (bench.folder(bench.cell(label)).path / "records.parquet").read_bytes()
        for label in ("rome-traced", f"rome-{layer}", f"rome-{1 - layer}")
    }
    assert records["rome-traced"] == records[f"rome-{layer}"]
    assert records["rome-traced"] != records[f"rome-{1 - layer}"]


def test_the_identity_has_the_trace_and_provenance_explain_and_mlflow_have_the_layer(bench):
    cell = bench.cell("rome-traced")
    layer = trace_of(bench, cell, "layers").decisive_layer()
    identity, folder = cell.identity(), bench.folder(cell)
    assert identity["method"]["hparams"]["layers"]["traced"]["facts"] == 6
    assert identity["artifacts"]["layers"] == cell.artifacts()["layers"].key
    origin = folder.read("provenance.json")
    assert origin["chosen"] == {"layers": [layer]}
    shown = next(line for line in explain(folder) if "layers = " in line)
    assert f"layers = [{layer}]" in shown
    assert "decided by" in shown
    named = params(folder.read("cell.json"), origin).values
    assert named[f"{cell.method.name}.layers"] == f"[{layer}]"
    single = bench.folder(bench.cell("ft-l-traced")).read("provenance.json")["chosen"]
    assert single == {"layer": layer}


def test_the_seed_decides_the_trace_whatever_was_traced_before(bench, tmp_path):
    cell = bench.cell("trace")
    part = next(iter(cell.artifacts()["trace"].needs.values()))
    build.build_part(part, bench.context, tmp_path)
    again, first = Trace.load(tmp_path), Trace.load(bench.context.artifact(part))
    assert [(fact.record_id, fact.corrupted) for fact in again.facts] == [
        (fact.record_id, fact.corrupted) for fact in first.facts
    ]
