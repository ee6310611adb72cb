"""EasyEdit's scoring rules by hand; test_easyedit_functions.py compares them with its own functions."""

import contextlib

import pytest
import torch

from harness import registry
from harness.evaluation import unedited
from harness.evaluation.evaluate import evaluate
from harness.evaluation.metrics import aggregate, agreement
from harness.evaluation.protocols import OWN
from harness.models.edited import WeightEditedModel
from harness.records import DataRef, Dataset, EditRecord, Probe
from harness.tokens import Query
from methods.easyedit.scoring import FORMS, EasyEditGeneration, EasyEditScoring
from reports.common import in_order, protocol_title
from tests.helpers.real_tokenizers import real_tokenizer
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

CAPITAL = "The capital of France is"
REF = DataRef("counterfact", "synthetic", edits=2, sha256="ab")
RECORDS = (
    EditRecord(
        "a",
        "The mother tongue of Danielle Darrieux is",
        "Danielle Darrieux",
        "English",
        "French",
        rephrases=("Danielle Darrieux spoke", "What is the mother tongue of Danielle Darrieux?"),
        locality=(Probe("Björk was born in", "Reykjavík"), Probe("東京 is the capital of", "日本")),
        portability=(Probe("The country of the Eiffel Tower is", "France"),),
    ),
    EditRecord("b", "Where is the Eiffel Tower?", "Eiffel Tower", "Reykjavík", "", locality=(Probe(CAPITAL, "Paris"),)),
)
DATA = Dataset(REF, RECORDS, (), ())


class Lent:
    """A context that lends one model and `DATA`."""

    def __init__(self, model):
        self.model, self.clock = model, self

    def load_model(self, ref):
        return self.model

    def load_data(self, ref):
        return DATA

    def phase(self, name):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def progress(self, description, total):
        yield lambda steps=1: None


@pytest.fixture
def tokenizers(shared, tmp_path):
    return lambda name: real_tokenizer(name, shared, tmp_path / name)


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def outputs(model, tmp_path):
    unedited.build(unedited.artifact(model.ref, REF, ["easyedit"], batch_size=2), Lent(model), tmp_path)
    return unedited.UneditedOutputs.load(tmp_path)


def test_what_is_scored_begins_after_as_many_ids_as_the_prompt_has_by_itself(tokenizers):
    """The space at the prompt's end joins the one that EasyEdit adds to `▁▁`, and `▁Paris` falls apart."""
    tokenizer = tokenizers("llama2")
    assert EasyEditScoring.queries(tokenizer, [(CAPITAL, "Paris")])[0].target_ids == (3681,)
    spaced = EasyEditScoring.queries(tokenizer, [(f"{CAPITAL} ", "Paris")])[0]
    assert tokenizer.convert_ids_to_tokens(spaced.prompt_ids) == [
        "<s>",
        "▁The",
        "▁capital",
        "▁of",
        "▁France",
        "▁is",
        "▁▁",
    ]
    assert tokenizer.convert_ids_to_tokens(spaced.target_ids) == ["Par", "is"]
    spaced = EasyEditScoring.queries(tokenizer, [(CAPITAL, " Paris")])[0]
    assert tokenizer.convert_ids_to_tokens(spaced.target_ids) == ["▁▁", "Par", "is"], "nothing is stripped"


def test_an_end_of_text_in_a_text_counts_as_padding(tokenizers):
    """Of A, </s>, B, is, C, </s> (after <s>) four ids of the prompt are none, and two of all are: the cut is at six."""
    tokenizer = tokenizers("llama2")
    query = EasyEditScoring.queries(tokenizer, [("A</s> B is", "C</s>")])[0]
    assert tokenizer.convert_ids_to_tokens(query.target_ids) == ["</s>"]
    query = EasyEditScoring.queries(tokenizers("gpt2"), [("A<|endoftext|> B is", "C")])[0]
    assert query.target_ids == (327,), "in the prompt alone it moves nothing"


def test_a_question_of_which_nothing_is_left_to_score_is_refused(tokenizers):
    tokenizer = tokenizers("llama2")
    with pytest.raises(ValueError, match="nothing to score"):
        EasyEditScoring.queries(tokenizer, [(f"{CAPITAL} ", "")])  # `▁` becomes `▁▁`: as many ids as before
    with pytest.raises(ValueError, match="nothing to score"):
        EasyEditGeneration.queries(tokenizer, [(CAPITAL, "")])


def test_an_end_of_text_is_needed():
    tokenizer = tiny_tokenizer("llama").__class__(tokenizer_object=tiny_tokenizer("llama").backend_tokenizer)
    with pytest.raises(ValueError, match="end-of-text"):
        EasyEditScoring.queries(tokenizer, [(CAPITAL, "Paris")])


def test_generation_is_scored_against_the_target_tokenised_by_itself(tokenizers):
    """On GPT-2's tokenizer a right answer is therefore wrong."""
    protocol, target_ids = EasyEditGeneration(), {}
    for name in ("llama2", "mistral-v1", "gpt2"):
        tokenizer = tokenizers(name)
        query = protocol.queries(tokenizer, [(CAPITAL, "Paris")])[0]
        assert list(query.prompt_ids) == tokenizer(CAPITAL)["input_ids"]
        target_ids[name] = query.target_ids
        right = EasyEditScoring.queries(tokenizer, [(CAPITAL, "Paris")])[0].target_ids
        score = agreement(protocol.compared(query, right, tokenizer), query.target_ids)
        assert score == (0.0 if name == "gpt2" else 1.0)
    assert target_ids == {"llama2": (3681,), "mistral-v1": (5465,), "gpt2": (40313,)}


@pytest.mark.parametrize(
    ("predicted", "compared"),
    [
        ([7, 8, 9, 6], (7, 8, 9, 6)),
        ([7, 8, 9, 2], (7, 8, 9, 2)),
        ([7, 2, 9, 6], (12, 13, 7, 2)),  # the end comes early: two ids of the prompt are compared
        ([2, 8, 2, 6], (11, 12, 13, 2)),
    ],
)
def test_after_an_early_end_the_prompts_last_ids_are_compared(predicted, compared):
    query = Query("p", "t", (1, 11, 12, 13), (7, 8, 9, 6))
    assert EasyEditGeneration().compared(query, predicted, tiny_tokenizer("llama")) == compared


def test_where_even_the_prompt_is_too_short_it_counts_as_padded_on_the_left():
    query = Query("p", "t", (1,), (7, 8, 9, 6))
    assert EasyEditGeneration().compared(query, [7, 2, 9, 6], tiny_tokenizer("llama")) == (2, 1, 7, 2)


def test_teacher_forced_answers_are_compared_as_they_are():
    query = Query("p", "t", (1,), (7, 8))
    assert EasyEditScoring().compared(query, [2, 8], tiny_tokenizer("llama")) == [2, 8]


def test_scores_equal_one_forward_over_the_whole_text_of_a_single_question(model, outputs):
    def said(prompt, target):
        """As EasyEdit slices it: logits and ids from the prompt's length on, shifted by one."""
        ids = model.tokenizer(f"{prompt} {target}")["input_ids"]
        start = len(model.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            answers = model.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        return answers[start - 1 : -1], ids[start:]

    probes = [probe for record in RECORDS for probe in record.locality]
    before = {probe.prompt: said(probe.prompt, probe.answer)[0] for probe in probes}
    _disturb(model)
    rows = evaluate(WeightEditedModel(model), DATA, model.tokenizer, [registry.protocols.get("easyedit")], 2, outputs)
    assert len(rows) == 8
    for row in rows:
        answer, labels = said(row.prompt, row.target)
        right = before[row.prompt] if row.axis == "locality" else labels
        assert (row.protocol, row.score) == ("easyedit", agreement(answer, right))
        assert row.predicted == model.tokenizer.decode(answer)


def test_generated_answers_equal_a_slow_loop_that_stops_at_the_end_of_text(model, outputs):
    _end_often(model)
    rows = evaluate(WeightEditedModel(model), DATA, model.tokenizer, [FORMS["generation"]], 2, outputs)
    ended = 0
    for row in (row for row in rows if row.axis != "locality"):
        ids, wanted = (model.tokenizer(row.prompt)["input_ids"], _alone(model, row.target))
        for step in range(len(wanted)):
            with torch.no_grad():
                ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == model.tokenizer.eos_token_id:
                ended += step + 1 < len(wanted)
                break
        assert (row.protocol, row.score) == ("easyedit", agreement(ids[-len(wanted) :], wanted))
    assert ended, "some answer has to end early"


@pytest.mark.parametrize("scoring", FORMS)
def test_the_unedited_model_keeps_all_its_answers_in_either_form(model, outputs, scoring):
    rows = evaluate(WeightEditedModel(model), DATA, model.tokenizer, [FORMS[scoring]], 2, outputs)
    assert aggregate(rows)["easyedit"]["locality"]["score"] == 1.0


def test_all_protocols_can_be_asked_at_once_and_the_own_ones_answer_as_without_it(model, tmp_path):
    names = [name for name in registry.protocols if name != "natural_chat"]  # needs a chat template
    unedited.build(unedited.artifact(model.ref, REF, names, batch_size=2), Lent(model), tmp_path)
    outputs = unedited.UneditedOutputs.load(tmp_path)
    together = evaluate(
        WeightEditedModel(model), DATA, model.tokenizer, [registry.protocols.get(name) for name in names], 2, outputs
    )
    alone = evaluate(WeightEditedModel(model), DATA, model.tokenizer, OWN, 2, outputs)
    assert [repr(row) for row in together[: len(alone)]] == [repr(row) for row in alone]
    assert list(aggregate(together)) == names
    assert {"natural", "natural_thought", "easyedit"} < set(names)


def test_easyedit_scores_grace_alone_by_generation():
    for backend in ("native", "easyedit"):
        scored = {
            name: registry.protocols.get("easyedit").of(method.spec)
            for name, method in registry.implementations(backend).all().items()
        }
        assert {name for name, form in scored.items() if form is FORMS["generation"]} == {"grace"}
        assert all(form in FORMS.values() for form in scored.values())
    assert all(protocol.of(registry.find_method("grace").spec) is protocol for protocol in OWN)


def test_tables_show_protocols_in_order_of_registration_under_their_titles():
    names = in_order(["easyedit", "generation", "teacher_forced"])
    assert names == [name for name in registry.protocols if name in names]
    assert [protocol_title(name) for name in names] == ["teacher-forced", "generation", "EasyEdit's scoring"]


def _disturb(model):
    with torch.no_grad():
        model.value_matrix(1)[1].add_(torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))


def _end_often(model):
    """Make the end of text the likeliest id after some texts and not after others."""
    with torch.no_grad():
        head_VD = model.model.get_output_embeddings().weight
        head_VD[model.tokenizer.eos_token_id] = 2 * head_VD[model.tokenizer.eos_token_id + 3 : -1].mean(0)
        head_VD[model.tokenizer.eos_token_id] += 0.7 * head_VD[40:60].sum(0)


def _alone(model, target):
    return model.tokenizer(target, add_special_tokens=False)["input_ids"]
