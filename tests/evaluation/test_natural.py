"""Answers that end by themselves: where they end, and that nothing of the target reaches the model."""

import math

import pytest

from harness import registry
from harness.api import EditedModel
from harness.errors import UserError
from harness.evaluation.natural import (
    DISTRACTIONS,
    LIMIT,
    THOUGHT,
    Natural,
    NaturalChat,
    NaturalDistracted,
    NaturalInstruct,
    NaturalThought,
)
from harness.evaluation.probes import ProbeQuery
from harness.models.edited import WeightEditedModel
from harness.records import Probe
from tests.helpers.tiny_models import tiny_model

PAIRS = [
    ("The mother tongue of Danielle Darrieux is ", " French"),
    ("Björk was born in", "Reykjavík, the capital of Iceland"),
]


class Dictated(EditedModel):
    """Writes the same ids after every prompt."""

    def __init__(self, ids):
        self.ids = ids

    def teacher_forced(self, queries):
        raise NotImplementedError

    def generate(self, queries):
        return [(self.ids * LIMIT)[: len(query.target_ids)] for query in queries]


@pytest.fixture(scope="module")
def model():
    return tiny_model("gptj")


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


def graded(model, protocol, query, ids, unedited=None, axis="reliability"):
    asked = ProbeQuery("1", axis, 0, query)
    return protocol.row(asked, ids, unedited, math.nan, model.tokenizer)


def test_the_limit_and_the_ids_of_the_prompt_do_not_depend_on_the_target(model):
    for protocol in (Natural, NaturalInstruct):
        one, other = (protocol.queries(model.tokenizer, [(PAIRS[0][0], target)])[0] for target in ("a", "b " * 50))
        assert (one.prompt_ids, one.target_ids) == (other.prompt_ids, other.target_ids)
        assert len(one.target_ids) == LIMIT


def test_an_answer_ends_with_its_first_line_or_with_the_end_of_text(model):
    (query,) = Natural.queries(model.tokenizer, PAIRS[:1])
    end, line = model.tokenizer.eos_token_id, ids_of(model, "\n")
    french, more = ids_of(model, " French"), ids_of(model, " and more")
    for written, wanted in (
        ([*french, *line, *more], [*french, *line]),
        ([*line, *french, *line, *more], [*line, *french, *line]),
        ([*french, end, *more], [*french, end]),
    ):
        (ids,) = Natural().predict(Dictated(written), [query])
        assert ids == wanted
        found = graded(model, Natural(), query, ids)
        assert (found.predicted, found.exact, found.contains, found.score) == ("French", 1, 1, 1)
        assert found.target == "French"


def test_locality_compares_with_the_unedited_answer(model):
    (query,) = Natural.queries(model.tokenizer, PAIRS[:1])
    paris, french = ids_of(model, " Paris"), ids_of(model, " French")
    found = graded(model, Natural(), query, paris, unedited=paris, axis="locality")
    assert (found.score, found.exact, found.contains, found.answer_score) == (1, 1, 1, 0)
    assert graded(model, Natural(), query, paris, unedited=french, axis="locality").score == 0
    both = ids_of(model, " Paris. It is big.")
    for edited, unedited in ((both, paris), (paris, both)):
        assert graded(model, Natural(), query, edited, unedited=unedited, axis="locality").exact == 1


def test_rows_that_end_early_do_not_change_others(model):
    """A real model in a batch: each row is what it is alone."""
    queries = Natural.queries(model.tokenizer, PAIRS)
    side = WeightEditedModel(model)
    endless = side.generate(queries)
    stop = {0: 3, 1: 7}
    seen = {0: 0, 1: 0}

    def ends(row, id_):
        assert id_ == endless[row][seen[row]], "ids come in order, and none after the end"
        seen[row] += 1
        return seen[row] == stop[row]

    assert side.generate_until(queries, ends) == [endless[row][: stop[row]] for row in (0, 1)]


def test_a_conversation_needs_a_chat_template(model):
    with pytest.raises(UserError, match="no chat template"):
        NaturalChat.queries(model.tokenizer, PAIRS)
    model.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}\nAssistant:{% endfor %}"
    try:
        query = NaturalChat.queries(model.tokenizer, PAIRS)[0]
    finally:
        model.tokenizer.chat_template = None
    assert query.prompt.endswith("Darrieux is\nAssistant:")
    assert not query.line_ids


def test_a_conversation_in_which_the_model_always_thinks_first_is_refused(model):
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<assistant><think>\n{% endfor %}"
    try:
        with pytest.raises(UserError, match="natural_chat: the chat template makes the model think") as caught:
            NaturalChat.queries(model.tokenizer, PAIRS)
    finally:
        model.tokenizer.chat_template = None
    assert caught.value.fix == "protocols: [natural, natural_instruct]"


def test_suites_can_name_them():
    assert {"natural", "natural_instruct", "natural_chat"} <= set(registry.protocols)


def test_a_thought_is_one_line_and_only_the_answer_after_it_is_compared(model):
    (query,) = NaturalThought.queries(model.tokenizer, [("Where is A?", "Oslo")])
    line = ids_of(model, "\n")
    thought, answer, more = (ids_of(model, text) for text in (" A is in Oslo.", "Answer: Oslo", "Question: no"))
    (ids,) = NaturalThought().predict(Dictated([*thought, *line, *answer, *line, *more]), [query])

    assert query.prompt == THOUGHT.format("Where is A?")
    assert ids == [*thought, *line, *answer, *line]
    assert graded(model, NaturalThought(), query, ids).predicted == "Oslo"
    assert graded(model, NaturalThought(), query, thought).predicted == ""


def test_of_several_acceptable_answers_the_best_counts(model):
    (query,) = Natural.queries(model.tokenizer, [("Where is A?", "Spain")])
    asked = ProbeQuery("1", "portability", 0, query, Probe("Where is A?", "Spain", aliases=("Kingdom of Spain", "ES")))
    found = Natural().row(asked, ids_of(model, " Kingdom of Spain"), None, math.nan, model.tokenizer)

    assert (found.score, found.exact, found.contains) == (1, 1, 1)
    assert Natural().row(asked, ids_of(model, " France"), None, math.nan, model.tokenizer).exact == 0


def test_a_short_alias_counts_only_as_the_whole_answer(model):
    (query,) = Natural.queries(model.tokenizer, [("Where is A?", "India")])
    asked = ProbeQuery("1", "portability", 0, query, Probe("Where is A?", "India", aliases=("IN", "I.D.", "Bharat")))

    def scores(answer):
        found = Natural().row(asked, ids_of(model, answer), None, math.nan, model.tokenizer)
        return found.score, found.exact, found.contains

    assert scores(" In the west of it") == scores(" My id is red") == (0, 0, 0)
    assert scores(" IN") == scores(" ID.") == scores(" Bharat") == (1, 1, 1)
    assert scores(" Bharat in the east")[2] == 1


def test_the_question_is_found_again_in_what_a_model_has_read(model):
    for protocol in (Natural, NaturalInstruct, NaturalThought):
        (query,) = protocol.queries(model.tokenizer, PAIRS[:1])
        assert protocol.question(query.prompt) == PAIRS[0][0].rstrip()
    model.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}\nAssistant:{% endfor %}"
    try:
        (query,) = NaturalChat.queries(model.tokenizer, PAIRS[:1])
    finally:
        model.tokenizer.chat_template = None
    assert NaturalChat.question(query.prompt) == f"{PAIRS[0][0].rstrip()}\nAssistant:"


def test_a_distraction_is_one_of_several_sentences_and_the_same_every_time(model):
    pairs = [(f"Where is number {number}?", "here") for number in range(12)]
    first, again = (NaturalDistracted.queries(model.tokenizer, pairs) for _ in range(2))

    assert [query.prompt for query in first] == [query.prompt for query in again]
    assert [NaturalDistracted.question(query.prompt) for query in first] == [prompt for prompt, _ in pairs]
    assert len({query.prompt.partition(" Where")[0] for query in first}) == len(DISTRACTIONS)
