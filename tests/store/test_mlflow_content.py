"""What MLflow gets of metrics.json beyond the scores of protocols."""

import json

from harness.store import mlflow_content
from harness.store.provenance import hparams_of
from harness.store.store import Folder
from tests.helpers.fake_store import FakeStore


def test_what_is_no_protocol_is_logged_under_its_own_name(tmp_path):
    path = FakeStore(tmp_path).write_cell("ft-l", "tiny/llama", "zsre")
    more = {
        "classic": {"ES": 0.5, "n": 2.0},
        "fluency": {"ngram_entropy": 6.1},
        "capability": {"0": {"mmlu": {"acc": 0.4}}, "4": {"mmlu": {"acc": 0.3}}, "10": {"mmlu": {"acc": 0.2}}},
    }
    written = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(written | more))
    found = mlflow_content.metrics(Folder(path)).values
    assert found["classic.ES"] == 0.5
    assert found["fluency.ngram_entropy"] == 6.1
    assert found["capability.mmlu.acc"] == 0.2, "that of the last edit"
    assert "generation.score" in found


def test_a_peak_that_is_unknown_is_left_out(tmp_path):
    known, unknown = (
        FakeStore(tmp_path / name).write_cell("ft-l", "tiny/llama", "zsre", cost=cost)
        for name, cost in (("known", {}), ("unknown", {"peak_memory_with_artifacts_bytes": None}))
    )
    name = "peak_memory_with_artifacts_bytes"
    assert mlflow_content.metrics(Folder(known)).values[name] == 3 * 2**30
    assert name not in mlflow_content.metrics(Folder(unknown)).values


def test_what_an_identity_leaves_out_is_a_param_like_the_rest(tmp_path):
    folder = Folder(
        FakeStore(tmp_path).write_cell("ft-l", "tiny/llama", "zsre", hparams={"steps": 3, "layer": "traced"})
    )
    cell = folder.read("cell.json")
    origin = {"references": {"hparams": {"steps": 3, "layer": "traced", "rounds": 1}}, "chosen": {"layer": 2}}

    def logged(origin):
        found = mlflow_content.params(cell, origin).values
        return {name: value for name, value in found.items() if name.startswith("ft-l.")}

    assert logged(origin) == {"ft-l.steps": "3", "ft-l.layer": "2", "ft-l.rounds": "1"}
    assert logged({}) == {"ft-l.steps": "3", "ft-l.layer": "traced"}, "as an earlier version wrote it"


def test_the_place_of_files_is_read_where_the_identity_leaves_it_out():
    cell = {"method": {"hparams": {"moments_path": None, "layers": [2]}}}
    origin = {"references": {"hparams": {"moments_path": "/corpus.txt", "layers": [2]}}}
    assert hparams_of(cell, origin) == {"moments_path": "/corpus.txt", "layers": [2]}
    assert hparams_of(cell, {}) == {"moments_path": None, "layers": [2]}
