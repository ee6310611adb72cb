import pytest

from harness.models.edited import WeightEditedModel
from harness.tokens import joint_query
from tests.helpers.slow_protocols import generate, teacher_forced
from tests.helpers.tiny_models import ARCHITECTURES, QUESTIONS, tiny_model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def queries(model):
    made = [joint_query(model.tokenizer, prompt, target) for prompt, target in QUESTIONS]
    assert len({len(query.prompt_ids) for query in made}) > 3
    assert len({len(query.target_ids) for query in made}) > 3
    return made


def test_teacher_forcing_in_a_batch_equals_one_question_at_a_time(model, queries):
    assert WeightEditedModel(model).teacher_forced(queries) == [teacher_forced(model, query) for query in queries]


def test_generation_in_a_batch_with_a_cache_equals_one_question_at_a_time_without(model, queries):
    assert WeightEditedModel(model).generate(queries) == [generate(model, query) for query in queries]


def test_a_batch_of_one_equals_the_same_question_among_others(model, queries):
    plain = WeightEditedModel(model)
    assert [plain.generate([query])[0] for query in queries] == plain.generate(queries)
    assert [plain.teacher_forced([query])[0] for query in queries] == plain.teacher_forced(queries)


def test_the_questions_tell_models_and_places_apart(model, queries):
    """If every answer were the same, the equalities above would prove nothing."""
    answers = [tuple(ids) for ids in WeightEditedModel(model).generate(queries)]
    assert len({ids for row in answers for ids in row}) > 5
    other = tiny_model(model.spec.architecture, seed=1)
    assert answers != [tuple(ids) for ids in WeightEditedModel(other).generate(queries)]


def test_an_end_of_text_id_does_not_end_a_generation(model, queries):
    """Every answer has as many ids as its target, whatever they are."""
    favourite = WeightEditedModel(model).generate(queries)[1][0]
    model.model.generation_config.eos_token_id = model.model.config.eos_token_id = favourite
    answers = WeightEditedModel(model).generate(queries)
    assert favourite in answers[1]
    assert [len(ids) for ids in answers] == [len(query.target_ids) for query in queries]


def test_no_question_has_no_answer(model):
    assert WeightEditedModel(model).teacher_forced([]) == []
    assert WeightEditedModel(model).generate([]) == []


def test_revert_calls_what_was_given_to_it(model):
    calls = []
    plain = WeightEditedModel(model, on_revert=lambda: calls.append("reverted"), diagnostics={"edits": 3.0})
    plain.revert()
    assert calls == ["reverted"]
    assert plain.diagnostics() == {"edits": 3.0}
