"""Thresholds chosen on train records: against every possible one, and used by the methods that compare prompts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.errors import UserError
from methods.common.threshold import FILE, ROLE, artifact, separating
from tests.helpers.method_bench import Bench
from tests.helpers.slow_similarity import similarity

CALIBRATED = {
    "retrieval": ("threshold", {"threshold": "calibrated"}),
    "ike": ("threshold", {"threshold": "calibrated"}),
    "onceedit": ("similarity_threshold", {"alpha": "similarity", "similarity_threshold": "calibrated", "epochs": 1}),
}


@pytest.fixture(params=sorted(CALIBRATED))
def calibrated(request, small_checkpoints, artifact_store):
    """A method with a threshold chosen on train records, and the name of that threshold."""
    option, options = CALIBRATED[request.param]
    return Bench(small_checkpoints, artifact_store, request.param, "llama", **options), option


def separated(threshold, inside, outside):
    """Share of `inside` above a threshold plus share of `outside` below it, counted one by one."""
    above = sum(value >= threshold for value in inside) / len(inside)
    return above + sum(value < threshold for value in outside) / len(outside)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_separates_better(seed):
    drawn = np.random.default_rng(seed)
    inside, outside = drawn.normal(0.8, 0.2, 30).round(1), drawn.normal(0.5, 0.2, 50).round(1)
    best = max(separated(threshold, inside, outside) for threshold in np.linspace(-1, 2, 1201))
    assert separated(separating(inside, outside), inside, outside) == pytest.approx(best)


def test_the_threshold_is_in_the_widest_of_equally_good_gaps():
    assert separating([0.9], [0.2, 0.5]) == pytest.approx(0.7)
    assert separating([0.4, 0.9], [0.3, 0.5]) == pytest.approx(0.7), "in the gap of .4, not in that of .1"


def test_texts_that_are_all_equally_similar_all_count():
    assert separating([0.5, 0.5], [0.5]) == 0.5


class _AsPlugin:
    """What the slow similarity asks of a plug-in, for a model without a token of its own."""

    def __init__(self, model):
        self.model, self.tokenizer, self.weight_id = model.model, model.tokenizer, len(model.embeddings.weight)


def test_it_separates_the_rephrases_of_train_records_from_their_locality_probes(calibrated):
    bench, _ = calibrated
    written = json.loads((bench.artifacts[ROLE] / FILE).read_text())
    records = [each for each in bench.data.train if each.rephrases and each.locality]
    assert written["records"] == len(records) > 0
    plugin, share = _AsPlugin(bench.model), bench.editor.hparams.similarity_subject
    prompts = [(record.prompt, record.subject) for record in records]
    rephrases = [similarity(plugin, prompts, text, share) for record in records for text in record.rephrases]
    others = [similarity(plugin, prompts, each.prompt, share) for record in records for each in record.locality]
    assert written["threshold"] == pytest.approx(separating(rephrases, others), abs=1e-5)
    reached = written["rephrases_above"] + written["locality_below"]
    assert reached == pytest.approx(separated(written["threshold"], rephrases, others))


def test_the_edited_model_uses_and_reports_it(calibrated):
    bench, option = calibrated
    written = json.loads((bench.artifacts[ROLE] / FILE).read_text())["threshold"]
    assert bench.edit().diagnostics()[option] == written
    given = bench.editor.hparams.model_copy(update={option: written})
    editor, bench.editor = bench.editor, type(bench.editor)(given)
    by_hand = bench.answers(bench.edit())
    bench.editor = editor
    assert bench.answers(bench.edit()) == by_hand


@pytest.mark.parametrize("train", [0, 8])
def test_without_train_records_to_learn_from_a_number_is_asked_for(calibrated, train):
    bench, option = calibrated
    without = replace(bench.data.ref, train=train, examples=0)
    with pytest.raises(UserError, match=f"some: `{option}: calibrated` needs train records") as error:
        artifact(bench.ref, without, 0.67, "some", option)
    assert f"{option}: 0.9" in str(error.value)
    assert ("train: 200" in str(error.value)) == (train == 0)
