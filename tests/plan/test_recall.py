"""What a finished cell records about the places of its model and records."""

from harness.plan.plan import Plan
from harness.plan.recall import model_of, references
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.small_suites import copy_home, write_suite


def test_places_are_written_in_full_and_are_not_part_of_the_identity(home, tmp_path, monkeypatch):
    folder = copy_home(home, tmp_path)

    def cell(llama, records):
        models = [{"name": "tiny/llama", "weights": "pretrained", "path": str(llama)}]
        datasets = [{"name": "counterfact", "path": str(records), "edits": 2, "split": "all"}]
        suite = write_suite(folder / "suite.yaml", models=models, methods=["none"], datasets=datasets)
        (found,) = Plan(load_suite(suite), Store(folder / "store")).runnable
        return found

    monkeypatch.chdir(folder)
    relative, absolute = cell("llama", "records"), cell(folder / "llama", folder / "records")
    written = references(relative)

    assert written == references(absolute)
    assert (written["model"]["source"], written["data"]["source"]) == (str(folder / "llama"), str(folder / "records"))
    assert relative.cell_id == absolute.cell_id
    monkeypatch.chdir("/")
    assert model_of(written["model"]).sha256 == relative.model.sha256


def test_synthetic_records_are_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    suite = write_suite(tmp_path / "suite.yaml", models=["llama2-7b"], methods=["none"], datasets=["zsre"])
    cell = Plan(load_suite(suite, scale="mini"), Store(tmp_path / "store")).runnable[0]

    assert references(cell)["data"]["source"] == "synthetic"
    assert references(cell)["model"]["corpus"]["source"] == "synthetic"
