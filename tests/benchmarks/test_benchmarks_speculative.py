"""The benchmark of speculative decoding runs from end to end and reports what it counted."""

import json
from argparse import Namespace

import pytest

from benchmarks import speculative
from harness.models.catalogue import ModelRef


@pytest.mark.slow
def test_a_quick_run_writes_all_results(tmp_path):
    speculative.main(["--quick", "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["kinds"]) == {"edits", "rephrases", "unrelated"}
    for kind in found["kinds"].values():
        assert set(kind["seconds"]) == {"target alone", "two forwards", "exact", "k = 2", "adaptive"}
        assert all(seconds > 0 for seconds in kind["seconds"].values())
        for counts in kind["counts"].values():
            assert counts["blocks"] > 0
            assert counts.get("accepted", 0) <= counts.get("drafted", 0)
    assert set(found["pass_seconds"]["target"]) == {"1", "2", "3", "5", "9"}


def test_the_cost_model_weighs_passes_against_right_drafts():
    widths = (1, 2, 3, 5, 9)
    passes = {"target": {n: 1 + (n - 1) / 10 for n in widths}, "plug-in": dict.fromkeys(widths, 0.5)}
    ratios = speculative.expected(passes)
    assert ratios["1.0"] == pytest.approx((1.8 + 9 * 0.5) / 9 / 1.5)
    assert ratios["0.5"] == pytest.approx((1.1 + 2 * 0.5) / 1.5 / 1.5)


def test_passes_of_a_model_that_does_not_fit_are_extrapolated_from_fewer_blocks(monkeypatch):
    monkeypatch.setattr(
        speculative, "pass_seconds", lambda model, _: dict.fromkeys(speculative.PASSES, 1 + len(blocks(model)))
    )
    options = Namespace(device="cpu", length=4, blocks=[1, 3])
    assert speculative.extrapolated(ModelRef("tiny/llama", "random"), options) == dict.fromkeys(speculative.PASSES, 5.0)


def blocks(model):
    return model.model.layers
