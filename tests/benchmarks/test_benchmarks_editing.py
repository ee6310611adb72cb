"""The benchmarks of editing and of evaluation: they run from end to end, hide no failure, and find answers that differ."""

import dataclasses
import json

import pytest
import torch

from benchmarks import editing, evaluation
from benchmarks.editing import MethodTimes, relative
from benchmarks.evaluation_comparison import TwoWays, compare, in_float64, parts
from benchmarks.evaluation_loops import PlainLoop
from benchmarks.random_models import LOGIT_SPREAD, realistic_model
from harness import registry
from harness.data.load import load, resolve
from harness.errors import UserError
from harness.evaluation.probes import probe_queries
from harness.models.catalogue import CATALOGUE, reference
from harness.models.tiny.corpus import verbalise
from tests.helpers.tiny_models import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def records():
    return load(resolve("counterfact", "synthetic", 4, train=4, unrelated=4))


@pytest.fixture
def small_7b(monkeypatch):
    """The names, precisions and layers of the large models, and so their hyper-parameters, at no width."""
    for name in ("llama2-7b", "tinyllama-1.1b"):
        small = dataclasses.replace(
            CATALOGUE[name].spec, hidden=32, ffn=48, vocab=3500, n_heads=4, n_kv_heads=4, max_positions=256
        )
        monkeypatch.setitem(CATALOGUE, name, dataclasses.replace(CATALOGUE[name], spec=small))
    monkeypatch.delenv("HARNESS_CORPUS", raising=False)


def results_of(main, tmp_path, *arguments):
    main([*arguments, "--out", str(tmp_path / "results.json")])
    return json.loads((tmp_path / "results.json").read_text())


def test_a_quick_run_of_editing_measures_every_method(tmp_path):
    found = results_of(editing.main, tmp_path, "--quick")
    assert found["environment"]["packages"]["torch"]
    assert found["device_class"]
    assert sorted(found["methods"]) == sorted({*registry.methods.all()} - {"trace"})
    for name, times in found["methods"].items():
        assert times["reason"] is None, name
        assert [len(values) for values in times["seconds"].values()] == [1, 1, 1]
        assert (times["seconds"]["edit_s"][0] > 0) == registry.find_method(name).spec.edits
        assert times["seconds"]["evaluate_s"][0] > 0
    assert found["methods"]["onceedit"]["ratio"]["edit_s"] == {"median": 1, "low": 1, "high": 1}
    assert found["methods"]["onceedit"]["seconds"]["attach_s"][0] > 0
    assert [name.split()[0] for name in found["methods"]["mend"]["artifacts_s"]] == ["mend-hypernetwork"]


def test_what_large_models_lack_is_said_and_stops_no_other_method(small_7b, tmp_path, capsys):
    settings = ["grace.lr=fast", "mend.layers=[99]", "ft-l.lr=3e38"]
    expected = {
        "memit": "covariance statistics of the keys are needed, but no text",
        "grace": "--set grace: lr: expected a number",
        "mend": "llama2-7b has 32 layers, but the last edited one is 99",
        "ft-l": "RuntimeError: ",
    }
    arguments = ["--model", "llama2-7b", "--methods", *expected, "onceedit", "--set", *settings]
    found = results_of(editing.main, tmp_path, "--quick", *arguments)["methods"]
    shown = capsys.readouterr().out
    for name, reason in expected.items():
        assert found[name]["reason"].startswith(reason)
        assert found[name]["reason"] in shown
    assert shown.count("failed, see below") == len(expected)
    assert found["onceedit"]["reason"] is None
    assert found["onceedit"]["seconds"]["edit_s"][0] > 0


def test_ratios_are_taken_within_a_round():
    found = {name: MethodTimes(name) for name in ("onceedit", "slow", "broken")}
    found["onceedit"].seconds |= {"edit_s": [1.0, 10.0, 2.0], "evaluate_s": [1.0, 1.0, 1.0]}
    found["slow"].seconds |= {"edit_s": [2.0, 30.0, 8.0], "evaluate_s": [1.0, 2.0, 5.0]}
    found["broken"].reason = "it broke"
    against = relative(found)
    assert against["slow"]["edit_s"] == {"median": 3, "low": 2, "high": 4}
    assert against["slow"]["evaluate_s"] == {"median": 2, "low": 1, "high": 5}
    assert "broken" not in against
    assert relative({"slow": found["slow"]}) == {}


def test_throughput_is_that_of_the_median_round_and_missing_without_edits():
    assert editing.per_second([0.1, 0.02, 0.05]) == "20"
    assert editing.per_second([0.0]) == "–"


@pytest.mark.parametrize("text", ["memit", "memit=3", "memit.batch", "memmit.batch=3"])
def test_a_setting_that_cannot_be_read_is_refused_in_one_line(text):
    with pytest.raises(UserError):
        editing.main(["--quick", "--set", text])


def test_a_quick_run_of_evaluation_finds_the_same_answers_both_ways(tmp_path):
    found = results_of(evaluation.main, tmp_path, "--quick")
    assert found["environment"]["packages"]["torch"]
    assert set(found["compared"]) == {"plain", "pair"}
    for protocols in found["compared"].values():
        for compared in protocols.values():
            assert compared["questions"] == 56
            assert compared["differ_in_float64"] == 0
            assert [len(compared[of]) for of in ("batched_s", "loop_s", "ratios")] == [2, 2, 2]


class Lying:
    """A loop that now and then gives another answer, in some precisions."""

    def __init__(self, model, *lies_in):
        self.loop, self.model, self.lies_in, self.asked = PlainLoop(model), model.model, lies_in, 0

    def teacher_forced(self, query):
        self.asked += 1
        told = self.loop.teacher_forced(query)
        lies = self.model.dtype in self.lies_in and self.asked % 5 == 0
        return [token + 1 for token in told] if lies else told


def two_ways(model, *lies_in):
    """The batched evaluation of a model, and a loop that lies in these precisions."""

    def lying():
        return dataclasses.replace(TwoWays.plain(model), loop=Lying(model, *lies_in), again=lying)

    return lying()


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_float64_and_back_is_the_same_to_the_bit(architecture, dtype):
    model = tiny_model(architecture).model.to(dtype)
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.clone() for tensor in tensors]
    with in_float64([model]):
        assert {tensor.dtype for tensor in tensors} == {torch.float64}
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == torch.float64
    assert all(torch.equal(was, now) and was.dtype == now.dtype for was, now in zip(before, tensors, strict=True))


@pytest.mark.parametrize("lies_in_float64", [False, True])
def test_answers_that_differ_are_counted_and_asked_again_in_float64(lies_in_float64, records):
    model = tiny_model("llama")
    questions = probe_queries(records, model.tokenizer)
    lies_in = [torch.float32, torch.float64] if lies_in_float64 else [torch.float32]
    ways = two_ways(model, *lies_in)
    found = compare(ways, questions, registry.protocols.get("teacher_forced"), 8, 3, CPU)
    assert found.differ in (len(questions) // 5, len(questions) // 5 + 1)
    assert found.differ_in_float64 == (found.differ // 5 if lies_in_float64 else 0)


def test_more_than_rounding_ends_the_run_with_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(evaluation.KINDS, "plain", lambda bench: two_ways(bench.model, torch.float32, torch.float64))
    monkeypatch.setattr(evaluation, "OWN", [registry.protocols.get("teacher_forced")])
    with pytest.raises(SystemExit, match="more than rounding"):
        evaluation.main(["--quick", "--kinds", "plain", "--out", str(tmp_path / "results.json")])
    assert (tmp_path / "results.json").is_file()


def test_the_loop_asks_every_question_once_and_records_as_a_whole(records):
    questions = probe_queries(records, tiny_model("llama").tokenizer)
    shares = parts(questions, 3)
    assert sorted(index for share in shares for index in share) == list(range(len(questions)))
    owners = [{questions[index].record_id for index in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 8
    assert len(parts(questions, 100)) == 8


@pytest.mark.parametrize("name", ["tiny/llama", "tiny/gptj"])
def test_a_random_model_has_logits_and_texts_of_the_usual_size(name, records):
    model = realistic_model(reference(name, weights="random"), verbalise(records), CPU)
    assert len(model.tokenizer) == model.spec.vocab
    texts = [record.prompt for record in records.edits]
    ids = [model.tokenizer(text)["input_ids"] for text in texts]
    assert [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids] == texts
    logits_V = model.model(input_ids=torch.tensor([ids[0]])).logits[0, -1]
    assert logits_V.std() == pytest.approx(LOGIT_SPREAD, rel=0.1)
