"""Benchmark tasks through lm-eval: equal to its own `hf` model, and files with one line for each mistake."""

import json

import pytest

from harness.errors import UnavailableError, UserError
from harness.evaluation.capability import tasks
from harness.evaluation.capability.scores import ask, mean, means
from harness.evaluation.capability.tasks import FORMS, reference
from harness.models.edited import WeightEditedModel
from harness.records import ItemScore
from tests.helpers.tiny_models import tiny_model

ROWS = {
    "mmlu": {"subject": "world_facts", "question": "Who was born in Paris?", "choices": [*"abcd"], "answer": 2},
    "arc_challenge": {"question": "What is made of ice?", "choices": ["a glacier", "sand", "Paris"], "answer": 0},
    "gsm8k": {"question": "Two and two?", "answer": "That is four.\n#### 4"},
    "rte": {"sentence1": "Iceland is cold.", "sentence2": "Iceland is warm.", "label": 1},
    "perplexity": {"text": "The Eiffel Tower stands in Paris. " * 20},
}


def write(folder, name, rows):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def several(name, number=3):
    """Rows that differ in length and words."""
    for place in range(number):
        text = " ".join(["however"] * place)
        yield {
            key: f"{value} {text}" if key in ("question", "sentence1", "text") else value
            for key, value in ROWS[name].items()
        }


@pytest.fixture
def without_checking_for_lm_eval(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: name)


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_the_unedited_model_scores_as_lm_evals_own_hf_model_item_by_item(architecture, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra `capability`")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.capability.lm import EditedLM

    model = tiny_model(architecture)
    mine = EditedLM(WeightEditedModel(model), model, 2)
    theirs = HFLM(
        pretrained=model.model, tokenizer=model.tokenizer, batch_size=3, max_length=model.positions, device="cpu"
    )

    def asked(kind, *arguments):
        return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]

    pairs = asked(
        "loglikelihood",
        ("Björk was born in", " Reykjavík"),
        ("Question: who?\nAnswer: ", "the Eiffel Tower, surely"),
        ("", "France"),
        ("however " * 2 * model.positions, " Paris"),
    )
    for (mine_log, mine_greedy), (their_log, their_greedy) in zip(
        mine.loglikelihood(pairs, disable_tqdm=True), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True
    ):
        assert mine_log == pytest.approx(their_log, abs=1e-4)
        assert mine_greedy == their_greedy
    texts = asked(
        "loglikelihood_rolling", ("Paris is old.",), ("The Eiffel Tower stands in Paris. " * 2 * model.positions,)
    )
    assert mine.loglikelihood_rolling(texts) == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-2
    )
    free = mine.generate_until(asked("generate_until", ("Paris", {"until": [], "max_gen_toks": 6})))[0]
    stops = {"until": [free[len(free) // 2 :][:2]], "max_gen_toks": 6}
    questions = asked(
        "generate_until", ("Paris", stops), ("Björk was born in", stops), ("however " * model.positions, stops)
    )
    found = mine.generate_until(questions)
    assert found == theirs.generate_until(questions, disable_tqdm=True)
    assert free.startswith(found[0])
    assert len(found[0]) < len(free)


@pytest.mark.parametrize("name", ROWS)
def test_every_kind_of_task_has_a_score_per_item(name, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `capability`")
    from harness.evaluation.capability import lm

    monkeypatch.setattr(lm, "MAX_ANSWER", 8)
    model, shots = tiny_model("llama"), int(name == "gsm8k")
    task = reference(name, path=write(tmp_path, name, several(name)), shots=shots)
    scores = ask(WeightEditedModel(model), model, task, 2)
    shown = [one for one in scores if one.metric == FORMS[name].metric]
    assert [one.item for one in shown] == list(range(3 - shots))
    assert FORMS[name].metric in means(scores)[name]


def test_a_perplexity_is_that_of_all_words_together():
    scores = [
        ItemScore("perplexity", "word_perplexity", place, -3.0 * words, words) for place, words in ((0, 2), (1, 5))
    ]
    assert means(scores)["perplexity"] == {"word_perplexity": pytest.approx(20.0855, abs=1e-3), "n": 2}
    assert mean("acc", [(1.0, 1.0), (0.0, 1.0)]) == 0.5


def test_a_task_is_its_rows_wherever_the_file_is(tmp_path, without_checking_for_lm_eval):
    here, there = tmp_path / "a", tmp_path / "b"
    here.mkdir()
    there.mkdir()
    write(here, "mmlu_570", several("mmlu"))
    write(there, "mmlu", several("mmlu"))
    one, other = (reference("mmlu", path=str(folder)) for folder in (here, there))
    assert one.path != other.path
    assert one.identity() == other.identity()
    assert reference("mmlu", path=str(here), items=2).identity() != one.identity()
    assert reference("mmlu", path=str(here), shots=1).identity() != one.identity()


@pytest.mark.parametrize(
    ("change", "wanted"),
    {
        "not JSON": ("{", r"mmlu.jsonl:2: not JSON"),
        "a missing key": ({"question": None}, r":2: missing key 'question'"),
        "a letter for a place": ({"answer": "B"}, r":2: 'answer' is not a whole number"),
        "a place beyond the choices": ({"answer": 4}, r":2: there is no choice 4"),
        "a choice that is no text": ({"choices": [1, 2]}, r":2: 'choices' is not a list of two or more texts"),
    }.values(),
)
def test_a_bad_row_is_one_line_with_file_and_line(change, wanted, tmp_path, without_checking_for_lm_eval):
    good = ROWS["mmlu"]
    bad = (
        change
        if isinstance(change, str)
        else json.dumps({k: v for k, v in {**good, **change}.items() if v is not None})
    )
    file = tmp_path / "mmlu.jsonl"
    file.write_text(f"{json.dumps(good)}\n{bad}\n", encoding="utf-8")
    with pytest.raises(UserError, match=wanted):
        reference("mmlu", path=str(file))


def test_a_row_with_a_choice_without_text_is_left_out_and_counted(tmp_path, without_checking_for_lm_eval):
    good, empty = ROWS["arc_challenge"], {**ROWS["arc_challenge"], "choices": ["a glacier", "", "Paris"]}
    task = reference("arc_challenge", path=write(tmp_path, "arc_challenge", [empty, good, empty, good]))
    assert (task.items, task.left_out, task.rows()[1]) == (2, 2, [good, good])
    with pytest.raises(UserError, match="has 0 rows"):
        reference("arc_challenge", path=write(tmp_path, "arc_challenge", [empty]))


def test_few_items_of_a_task_with_subjects_are_some_of_each(tmp_path, without_checking_for_lm_eval):
    rows = [
        {**ROWS["mmlu"], "subject": subject, "question": f"{subject} {number}?"}
        for subject in ("algebra", "botany", "civics")
        for number in range(3)
    ]
    asked = reference("mmlu", path=write(tmp_path, "mmlu", rows), items=4, shots=1).rows()[1]
    assert [row["question"] for row in asked] == ["algebra 1?", "botany 0?", "civics 0?", "algebra 2?"]
    assert reference("mmlu", path=write(tmp_path, "mmlu", rows)).rows()[1] == rows


def test_what_is_missing_is_named_with_a_remedy(tmp_path, without_checking_for_lm_eval):
    with pytest.raises(UnavailableError, match="needs a file of JSON Lines"):
        reference("mmlu")
    with pytest.raises(UnavailableError, match="no file of capability task 'mmlu' in this folder"):
        reference("mmlu", path=str(tmp_path))
    file = write(tmp_path, "mmlu", several("mmlu"))
    assert reference("mmlu", path=file, items=4).items == 3
    with pytest.raises(UserError, match="has 3 rows, which leaves none to ask after 3 examples → shots: 2"):
        reference("mmlu", path=file, shots=3)
    write(tmp_path, "mmlu_5", several("mmlu"))
    with pytest.raises(UserError, match="several files of capability task 'mmlu'"):
        reference("mmlu", path=str(tmp_path))


def test_without_lm_eval_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="lm-eval is not installed → pip install"):
        reference("perplexity")


def test_a_file_that_changes_after_planning_is_refused(tmp_path, without_checking_for_lm_eval):
    task = reference("mmlu", path=write(tmp_path, "mmlu", several("mmlu")))
    assert len(task.rows()[1]) == 3
    write(tmp_path, "mmlu", [{**row, "answer": 0} for row in several("mmlu", 4)])
    with pytest.raises(UserError, match="has changed since the run was planned"):
        task.rows()
