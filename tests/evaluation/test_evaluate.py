import contextlib
import math
from collections import Counter

import pytest
import torch

from harness import registry
from harness.errors import UserError
from harness.evaluation import unedited
from harness.evaluation.ask import ask_scope, predict
from harness.evaluation.evaluate import evaluate
from harness.evaluation.metrics import aggregate
from harness.evaluation.probes import LOCALITY_AXES, probe_queries, question_count
from harness.evaluation.protocols import OWN
from harness.models.catalogue import ModelRef
from harness.models.edited import WeightEditedModel
from harness.records import DataRef, Dataset, EditRecord, Probe
from tests.helpers import slow_protocols
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model

REF = DataRef("counterfact", "synthetic", edits=3, unrelated=2, sha256="ab")
SLOW = {"teacher_forced": slow_protocols.teacher_forced, "generation": slow_protocols.generate}
"""Reference implementations of the protocols, one question at a time."""


def small_dataset():
    edits = (
        EditRecord(
            "a",
            "The mother tongue of Danielle Darrieux is",
            "Danielle Darrieux",
            "English and Danish",
            "French",
            rephrases=("Danielle Darrieux spoke", "What is the mother tongue of Danielle Darrieux?"),
            locality=(Probe("Björk was born in", "Reykjavík"), Probe("東京 is the capital of", "日本")),
        ),
        EditRecord(
            "b",
            "Where is the Eiffel Tower?",
            "Eiffel Tower",
            "Côte d'Ivoire",
            "Paris",
            rephrases=("The Eiffel Tower is located in",),
            locality=(Probe("The capital of France", "is Paris, the capital of France"),),
            portability=(Probe("The country of the Eiffel Tower is", "Côte d'Ivoire"),),
        ),
        EditRecord("c", "東京 is", "東京", "the capital of Iceland", ""),
    )
    unrelated = (
        EditRecord("u", "Yamoussoukro is the capital of", "Yamoussoukro", "Iceland", "Côte d'Ivoire"),
        EditRecord("v", "A question without a known answer is", "question", "this", ""),
    )
    return Dataset(REF, edits, (), unrelated)


class Context:
    """A runner context that provides one model and one dataset."""

    device, seed = "cpu", 0

    def __init__(self, model):
        self.model, self.clock, self.phases, self.steps = model, self, [], 0

    def load_model(self, ref):
        return self.model

    def load_data(self, ref):
        return small_dataset()

    def phase(self, name):
        self.phases.append(name)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def progress(self, description, total):
        def advance(steps=1):
            self.steps += steps

        yield advance
        assert self.steps == total


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def outputs(model, tmp_path):
    spec = unedited.artifact(model.ref, REF, [protocol.name for protocol in OWN], batch_size=3)
    unedited.build(spec, Context(model), tmp_path)
    return unedited.UneditedOutputs.load(tmp_path)


def _disturb(model):
    with torch.no_grad():
        model.value_matrix(1)[1].add_(torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))


def test_scores_of_an_edited_model_equal_a_slow_loop_over_single_questions(model, outputs):
    questions = probe_queries(small_dataset(), model.tokenizer)
    before = {(name, asked): SLOW[name](model, asked.query) for name in SLOW for asked in questions}
    _disturb(model)
    rows = evaluate(WeightEditedModel(model), small_dataset(), model.tokenizer, OWN, 3, outputs)
    assert len(rows) == 2 * len(questions)
    assert {one.score for one in rows if one.axis == "locality"} - {1.0}, "the disturbance must have an effect"
    for one, (name, asked) in zip(rows, ((name, asked) for name in SLOW for asked in questions), strict=True):
        assert (one.protocol, one.record_id, one.axis, one.probe) == (name, asked.record_id, asked.axis, asked.probe)
        said, target = SLOW[name](model, asked.query), asked.query.target_ids
        right = before[name, asked] if asked.axis in LOCALITY_AXES else target
        assert one.predicted == model.tokenizer.decode(said)
        assert one.score == sum(a == b for a, b in zip(said, right, strict=True)) / len(target)
        assert one.exact == float(list(said) == list(right))
        if asked.has_known_answer:
            assert one.answer_score == sum(a == b for a, b in zip(said, target, strict=True)) / len(target)
        else:
            assert math.isnan(one.answer_score)
        assert math.isnan(one.scope), "edited weights have no routing score"


def test_the_unedited_model_keeps_all_its_answers(model, outputs):
    metrics = aggregate(evaluate(WeightEditedModel(model), small_dataset(), model.tokenizer, OWN, 3, outputs))
    for protocol in OWN:
        for axis in LOCALITY_AXES:
            scores = metrics[protocol.name][axis]
            assert scores["score"] == scores["exact"] == 1.0
            assert scores["answer_score"] < 1.0


def test_every_axis_has_the_records_with_probes_for_it():
    model = tiny_model("llama")
    questions = probe_queries(small_dataset(), model.tokenizer)
    assert Counter(asked.axis for asked in questions) == {
        "reliability": 3,
        "generality": 3,
        "locality": 3,
        "locality_unrelated": 2,
        "portability": 1,
    }
    unrelated = [asked for asked in questions if asked.axis == "locality_unrelated"]
    assert [(asked.query.target, asked.has_known_answer) for asked in unrelated] == [
        ("Côte d'Ivoire", True),
        ("this", False),
    ]
    assert [(q.record_id, q.probe) for q in questions if q.axis == "locality"] == [("a", 0), ("a", 1), ("b", 0)]
    assert all(
        q.query.target == "English and Danish" for q in questions if q.record_id == "a" and q.axis == "generality"
    )


def test_an_axis_without_any_probe_is_absent_from_the_metrics(tmp_path):
    model = tiny_model("llama")
    bare = Dataset(REF, small_dataset().edits[2:], (), ())
    rows = evaluate(WeightEditedModel(model), bare, model.tokenizer, OWN, 3, unedited.UneditedOutputs({}))
    assert {name: set(axes) for name, axes in aggregate(rows).items()} == {of.name: {"reliability"} for of in OWN}


class Recorder:
    def __init__(self):
        self.batches = []

    def teacher_forced(self, queries):
        self.batches.append([query.prompt for query in queries])
        return [list(query.target_ids) for query in queries]

    generate = teacher_forced


class Router(WeightEditedModel):
    """Gives longer prompts a higher routing score, and records its calls."""

    def __init__(self, model, longest=100):
        super().__init__(model)
        self.longest, self.calls = longest, []

    def teacher_forced(self, queries):
        self.calls.append(("answers", len(queries)))
        return super().teacher_forced(queries)

    generate = teacher_forced

    def scope(self, queries):
        self.calls.append(("scope", len(queries)))
        return [len(query.prompt) / self.longest for query in queries]


def test_routing_scores_are_computed_once_per_question_in_batches_after_all_answers():
    model, steps = tiny_model("llama"), []
    router = Router(model)
    data = Dataset(REF, small_dataset().edits[2:] * 5, (), ())
    rows = evaluate(
        router, data, model.tokenizer, OWN, 3, unedited.UneditedOutputs({}), lambda count: steps.append(count)
    )
    assert router.calls == [("answers", 3), ("answers", 2)] * 2 + [("scope", 3), ("scope", 2)]
    assert sum(steps) == question_count(data, len(OWN) + 1) == 15
    assert [one.scope for one in rows] == [len("東京 is") / 100] * 10


def test_every_row_has_the_routing_score_of_its_question(outputs, model):
    rows = evaluate(Router(model), small_dataset(), model.tokenizer, OWN, 2, outputs)
    assert len({one.scope for one in rows}) > 5
    assert all(one.scope == len(one.prompt) / 100 for one in rows)


def test_a_routing_score_above_one_is_an_error():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
        ask_scope(Router(model, longest=5), probe_queries(small_dataset(), model.tokenizer), 2)


def test_the_batches_of_an_axis_do_not_depend_on_which_other_axes_are_asked():
    """Otherwise rounding could differ between a cell and the unedited run, which covers locality only."""
    tokenizer, alone, among = tiny_model("llama").tokenizer, Recorder(), Recorder()
    protocol = registry.protocols.get("generation")
    predict(alone, probe_queries(small_dataset(), tokenizer, LOCALITY_AXES), protocol, 2)
    predict(among, probe_queries(small_dataset(), tokenizer), protocol, 2)
    assert all(batch in among.batches for batch in alone.batches)


def test_predictions_come_back_in_the_order_of_the_questions_and_progress_counts_them():
    tokenizer, steps = tiny_model("llama").tokenizer, []
    questions = probe_queries(small_dataset(), tokenizer)[::-1]
    answers = predict(
        Recorder(), questions, registry.protocols.get("teacher_forced"), 2, lambda count: steps.append(count)
    )
    assert answers == [list(asked.query.target_ids) for asked in questions]
    assert sum(steps) == len(questions) == question_count(small_dataset(), 1)


def test_a_locality_question_that_the_unedited_model_was_never_asked_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="never asked"):
        evaluate(WeightEditedModel(model), small_dataset(), model.tokenizer, OWN, 3, unedited.UneditedOutputs({}))


def test_the_identity_of_unedited_outputs_covers_everything_that_affects_them_but_no_path():
    def key(model="tiny/llama", data=REF, protocols=("generation",), batch_size=8, source=""):
        return unedited.artifact(ModelRef(model, "trained", source), data, protocols, batch_size).key

    assert key() == key(source="elsewhere")
    assert key() == key(data=DataRef("counterfact", "elsewhere", edits=3, unrelated=2, sha256="ab"))
    others = [
        key(model="tiny/gptj"),
        key(data=DataRef("counterfact", "synthetic", edits=3, unrelated=2, sha256="cd")),
        key(protocols=("teacher_forced",)),
        key(batch_size=9),
    ]
    assert len({key(), *others}) == 5


def test_a_protocols_version_is_part_of_the_identity_of_unedited_outputs(monkeypatch):
    before = unedited.artifact(ModelRef("tiny/llama", "trained"), REF, ["generation"], 8).key
    monkeypatch.setattr(type(registry.protocols.get("generation")), "version", 2)
    assert unedited.artifact(ModelRef("tiny/llama", "trained"), REF, ["generation"], 8).key != before


def test_an_unknown_protocol_is_refused_with_the_nearest_known_one():
    with pytest.raises(UserError, match="did you mean 'generation'"):
        registry.protocols.get("generations")
