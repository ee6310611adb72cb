"""The benchmark of the decoding step: it runs from end to end, and what it says it measures is what it measures."""

import dataclasses
import json

import pytest
import torch

from benchmarks import ensemble, ensemble_fusion
from benchmarks.ensemble_data import LIKE, Statistics, draw_steps, draw_tables, spectrum
from benchmarks.ensemble_pairs import ModelPair, built, plain_shape
from benchmarks.timing import Candidate, Measured, peak_bytes, taking_turns
from harness.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def small_pair():
    return built(plain_shape(300, (16, 8), Statistics()), ("deepen", 1.0), torch.float32, CPU, 0)


def test_a_quick_run_writes_all_results(tmp_path):
    ensemble.main(["--quick", "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["options"]["pair"] == "tiny"
    assert found["environment"]["packages"]["torch"]
    assert [record["batch"] for record in found["fusion"]] == [1, 4]
    for record in found["fusion"]:
        assert set(record["candidates"]) == {"owner", "column", "R, owner", "R, search"}
        assert record["candidates"]["R, search"]["speed_up"] == 1
        assert sum(record["levels"].values()) == pytest.approx(1)
        counts = record["agreement"]
        assert counts["wrong"] == 0
        assert counts["owner_is_column"] == counts["rows"] == 4 * record["batch"]
    for record in found["step"]:
        assert record["ratio"]["median"] > 0
        assert record["tally"]["fused_share"] == 1


def test_the_reference_is_left_out_where_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "ROOM", 1e12)
    ensemble.main(["--quick", "--parts", "fusion", "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert "R in memory is skipped" in found["left_out"][0]["reason"]
    assert set(found["fusion"][0]["candidates"]) == {"owner", "column"}


def test_the_tracker_counts_what_is_alive_at_once():
    def run():
        first = torch.ones(1000, dtype=torch.float64)
        second = first * 2
        del first
        third = second * 2
        return third + second

    result, peak = peak_bytes(run, CPU)
    assert peak == 3 * 8000
    assert result.sum() == 6000


def test_candidates_take_turns_on_the_input_of_the_round():
    seen = []

    def candidate(name, every):
        return Candidate(name, lambda turn: seen.append((name, turn)) or turn, every)

    found = taking_turns([candidate("often", 1), candidate("seldom", 3)], 7, CPU, tracks_memory=False)
    assert list(found["often"].results) == list(range(7))
    assert list(found["seldom"].results) == [0, 3, 6]
    timed = seen[-10:]
    assert [turn for _, turn in timed] == sorted(turn for _, turn in timed)
    assert [name for name, turn in timed if turn in (1, 2)] == ["often", "often"]


def test_a_wrong_anchor_is_counted():
    pair = small_pair()
    draws = ensemble_fusion.draws_of(pair, 4, 2, seed=1)
    whole = ensemble_fusion.InMemory.of(pair.llm.state), ensemble_fusion.InMemory.of(pair.plugin.state)
    decoders = {
        ensemble_fusion.OWNER: ensemble_fusion.decoding(pair.llm, pair.plugin, ensemble_fusion.OwnerDecoder(), draws),
        ensemble_fusion.COLUMN: ensemble_fusion.decoding(pair.llm, pair.plugin, ensemble_fusion.ColumnDecoder(), draws),
        ensemble_fusion.WHOLE_SEARCH: ensemble_fusion.decoding(*whole, ensemble_fusion.WholeOwnerDecoder(), draws),
    }
    found = {name: Measured({}, {turn: decode(turn) for turn in range(2)}, None) for name, decode in decoders.items()}
    assert ensemble_fusion.agreement(pair, found, draws)["wrong"] == 0
    right = found[ensemble_fusion.OWNER].results[1]
    found[ensemble_fusion.OWNER].results[1] = dataclasses.replace(right, anchors_B=(right.anchors_B + 1) % 225)
    assert ensemble_fusion.agreement(pair, found, draws)["wrong"] == 4


def test_embeddings_have_the_cosines_that_are_asked_for():
    tables = draw_tables(plain_shape(2000, (512, 256), Statistics(common=0.3)), torch.float32, CPU, 0)
    for rows_VD in (tables.llm_VD, tables.plugin_UD):
        unit_VD = torch.nn.functional.normalize(rows_VD, dim=-1)
        mean_cosine = (unit_VD.mean(dim=0) ** 2).sum()
        assert 0.3 < mean_cosine < 0.36  # a few pairs share a cluster
    assert len(set(tables.llm_ids)) == len(set(tables.plugin_ids)) == 1500


@pytest.mark.parametrize("name", LIKE)
def test_embeddings_have_the_statistics_of_the_table_they_are_like(name):
    like = LIKE[name]
    tables = draw_tables(plain_shape(4000, (128, 64), like), torch.float32, CPU, 0)
    for rows_VD in (tables.llm_VD, tables.plugin_UD):
        unit_VD = torch.nn.functional.normalize(rows_VD, dim=-1)
        assert float((unit_VD.mean(dim=0) ** 2).sum()) == pytest.approx(like.common, abs=0.1)
        assert float(rows_VD.norm(dim=-1).log().std()) == pytest.approx(like.length_spread, abs=0.1)
    values_D = spectrum(like, like.width)
    assert values_D[[0, 8, 64]] / values_D.mean() == pytest.approx([like.spectrum[n] for n in (0, 4, 7)], rel=0.2)
    assert (values_D.diff() <= 0).all()


def test_steps_are_distributions_with_alpha_near_the_ends():
    pair = small_pair()
    draw = draw_steps(pair.tables, 200, torch.Generator().manual_seed(0))
    for probs_BV in (draw.logits_l_BV.softmax(dim=-1), draw.logits_l_BV.exp(), draw.probs_s_BU):
        assert torch.allclose(probs_BV.sum(dim=-1), torch.ones(200), atol=1e-5)
    is_sharp_B = draw.probs_s_BU.amax(dim=-1) >= 0.6
    assert 70 < is_sharp_B.sum() < 130
    assert ((draw.alpha_B <= 0.2) | (draw.alpha_B >= 0.8)).all()


def test_anchors_of_the_papers_pairs_are_those_of_the_paper():
    assert ModelPair.named("llama2-7b+tinyllama-1.1b").shape(Statistics()).anchors == 31999
    assert ModelPair.named("gpt-j-6b+tinyllama-1.1b").shape(Statistics()).tokens_plugin == 32001


@pytest.mark.parametrize("name", ["large", "llama2-7b+tinyllama"])
def test_an_unknown_pair_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="unknown"):
        ModelPair.named(name)
