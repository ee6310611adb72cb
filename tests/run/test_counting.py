"""The FLOPs of a cell, through the runner."""

import dataclasses
import json

import pytest

from harness.models.edited import WeightEditedModel
from harness.run.counting import CellCounter
from harness.run.runner import Runner
from methods.ft_l import FtL
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite


@pytest.fixture(scope="module")
def bench(home, tmp_path_factory):
    suite = write_suite(home / "counted.yaml", count_flops=2)
    return PlanBench(suite, tmp_path_factory.mktemp("counted"))


def flops_of(bench, cell):
    assert bench.run(cell).reason is None
    flops = bench.folder(cell).read("cost.json").get("flops")
    bench.store.discard(cell.folder)
    return flops


def test_a_cell_says_what_it_costs_and_its_results_are_the_same(bench):
    cell = bench.cell("ft-l")
    assert cell.count_flops == 2
    files = {}
    for count in (0, 2):
        assert bench.run(dataclasses.replace(cell, count_flops=count)).reason is None
        folder = bench.folder(cell)
        files[count] = [(folder.path / name).read_bytes() for name in ("records.parquet", "metrics.json")]
        flops = folder.read("cost.json").get("flops")
        bench.store.discard(cell.folder)
        assert (flops is None) == (count == 0)
    assert files[0] == files[2]
    assert flops["edit"] == pytest.approx(8 * flops["per_edit"], abs=8)
    assert flops["setup"] == flops["attach"] == 0
    assert 0 < flops["per_token"] < flops["per_prompt"] < flops["evaluate"]
    assert flops["sample_edits"] == 2


def test_a_token_costs_two_flops_per_parameter_and_little_attention(bench):
    flops = flops_of(bench, bench.cell("none"))
    model = bench.context.load_model(bench.cell("none").model).model
    matrices = sum(
        weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name
    )
    assert 2 * matrices < flops["per_token"] < 1.2 * 2 * matrices
    assert flops["edit"] == flops["per_edit"] == 0


def test_edits_that_are_not_in_the_sample_cost_as_much_as_those_that_are(bench):
    few, all_ = (flops_of(bench, dataclasses.replace(bench.cell("ft-l"), count_flops=count)) for count in (4, 8))
    for name in ("evaluate", "per_token"):
        assert few[name] == pytest.approx(all_[name], rel=0.25)
    assert few["edit"] == all_["edit"]  # FT-L trains all together: four would be learned in fewer steps


def test_results_are_kept_where_counting_fails_and_readers_are_told(bench, monkeypatch):
    cell = bench.cell("ft-l")
    monkeypatch.setattr(WeightEditedModel, "formula_flops", lambda self: 1 / 0)
    outcome = bench.run(cell)
    assert outcome.reason is None
    assert outcome.remarks == ("FLOPs are not known, because counting failed: ZeroDivisionError: division by zero",)
    folder = bench.folder(cell)
    assert folder.read("cost.json")["flops"] == {"uncounted": "ZeroDivisionError: division by zero"}
    assert "Traceback" in (folder.path / "log.txt").read_text()
    bench.store.discard(cell.folder)


def test_a_cell_whose_counting_was_interrupted_is_not_edited_again(bench, monkeypatch):
    cell = bench.cell("ft-l")
    whole = flops_of(bench, cell)
    with monkeypatch.context() as patch:
        patch.setattr(CellCounter, "count", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.run(cell)
    assert not bench.folder(cell).is_settled
    scored = bench.store.scored(cell.folder).path
    records = (scored / "records.parquet").read_bytes()
    monkeypatch.setattr(Runner, "_edit_and_evaluate", interrupted)
    assert bench.run(cell).reason is None
    folder = bench.folder(cell)
    assert (folder.path / "records.parquet").read_bytes() == records
    assert folder.read("cost.json")["flops"] == whole
    assert not scored.exists()
    bench.store.discard(cell.folder)


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_implementation_that_runs_elsewhere_says_so(bench, monkeypatch):
    monkeypatch.setattr(FtL, "uncounted", "it runs elsewhere")
    assert flops_of(bench, bench.cell("ft-l")) == {"uncounted": "it runs elsewhere"}


def test_an_artifact_is_counted_once_and_its_steps_are_extrapolated(bench, monkeypatch):
    from harness.run import counting

    cell = bench.cell("ft-l")
    (spec,) = cell.all_unedited_outputs()
    path = bench.store.artifact(spec.name, spec.key).path
    steps = json.loads((path / "cost.json").read_text())["steps"]
    assert list(steps.values()) == [sum(steps.values())]
    whole = counting.artifact_flops(bench.store, bench.context, spec)
    assert counting.artifact_flops(bench.store, bench.context, spec) == whole
    (path / counting.FILE).unlink()
    monkeypatch.setattr(counting, "STEPS", 2)
    few = counting.artifact_flops(bench.store, bench.context, spec)
    (path / counting.FILE).unlink()
    assert few["evaluate"] == pytest.approx(whole["evaluate"], rel=0.5)


def test_a_prompt_is_continued_by_exactly_the_tokens_that_are_counted(bench, monkeypatch):
    """An answer that is given in other tokens than those chosen may be written on, by a number that depends on the method."""
    cell = bench.cell("ft-l")
    exact = flops_of(bench, cell)
    generate = WeightEditedModel.generate

    def written_on(self, queries):
        longer = [dataclasses.replace(query, target_ids=query.target_ids * 3) for query in queries]
        return [ids[: len(query.target_ids)] for ids, query in zip(generate(self, longer), queries, strict=True)]

    monkeypatch.setattr(WeightEditedModel, "generate", written_on)
    found = flops_of(bench, cell)
    assert [found[name] for name in ("per_prompt", "per_token")] == [exact["per_prompt"], exact["per_token"]]
