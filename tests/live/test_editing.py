"""`import harness` and what it offers to a program."""

import subprocess
import sys

import pytest

import harness
from harness.errors import UserError
from harness.live.facts import as_records
from tests.live.conftest import FT_L, GRACE

FACTS = [
    {"prompt": "The mother tongue of Danielle Darrieux is", "subject": "Danielle Darrieux", "target_new": "English",
     "rephrases": ["Danielle Darrieux spoke"], "locality": [{"prompt": "Björk was born in", "answer": "Iceland"}]},
    {"prompt": "The Eiffel Tower is in", "subject": "The Eiffel Tower", "target_new": "Rome"},
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(doors):
    return {"name": "tiny/llama", "weights": "pretrained", "path": str(doors[0].parent / "llama")}


def test_importing_the_package_imports_nothing_else():
    script = "import sys, harness; assert not {'torch', 'pandas', 'harness.live', 'harness.run'} & set(sys.modules); harness.edit"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert {"edit", "evaluate", "load_edited", "load_records", "load_results", "run"} <= set(dir(harness))
    assert {home.rpartition(".")[0] for home in harness._HOMES.values()} == {"harness.live"}, (
        "the layer of the Python API"
    )
    with pytest.raises(AttributeError, match="no attribute 'edti'"):
        harness.edti  # noqa: B018


def test_facts_are_edited_evaluated_and_saved(llama, tmp_path):
    edited = harness.edit(llama, FACTS, FT_L, store=tmp_path / "store", device="cpu")
    found = harness.evaluate(edited, FACTS, ["generation"])
    assert set(found.metrics["generation"]) == {"reliability", "generality", "locality"}
    assert found.metrics["generation"]["reliability"]["n"] == 2
    assert list(found.answers["record_id"].unique()) == [record.id for record in as_records(FACTS)]
    both = edited.compare(FACTS[0]["prompt"], max_tokens=4)
    assert both["edited"] == edited.answer(FACTS[0]["prompt"], max_tokens=4)
    assert set(both) == {"unedited", "edited"}
    loaded = harness.load_edited(edited.save(tmp_path / "saved"))
    assert loaded.answer(FACTS[0]["prompt"], max_tokens=4) == both["edited"]
    again = harness.edit(llama, FACTS, FT_L, store=tmp_path / "store", device="cpu")
    assert all((again.edited.weights[name] == value).all() for name, value in edited.edited.weights.items())


def test_a_routed_memory_says_which_prompts_it_answers(llama, tmp_path):
    edited = harness.edit(llama, FACTS, GRACE, store=tmp_path, device="cpu")
    assert edited.routing(FACTS[0]["prompt"]) == 1
    assert edited.remarks() == ()


def test_a_method_that_learns_from_other_facts_gets_them_or_says_how(llama, tmp_path):
    wanted = {
        "name": "rome",
        "layers": [1],
        "moments": "train_prompts",
        "moments_tokens": 200,
        "v_steps": 2,
        "prefixes": [],
    }
    with pytest.raises(UserError, match=r"unrelated records.*data='synthetic'"):
        harness.edit(llama, FACTS, wanted, store=tmp_path, device="cpu")
    edited = harness.edit(llama, FACTS, wanted, data="synthetic", store=tmp_path, device="cpu")
    assert edited.edited.weights


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ([], "the list is empty"),
        ("Paris", "expected a list"),
        ([{"prompt": "a"}], "fact 1: target_new"),
        ([{**FACTS[1], "sbject": "x"}], "fact 1: unknown key 'sbject' .did you mean 'subject'"),
    ],
)
def test_what_is_no_fact_is_refused_in_one_line(facts, complaint):
    with pytest.raises(UserError, match=complaint):
        as_records(facts)


def test_a_misspelt_method_is_refused_as_in_a_suite(llama, tmp_path):
    with pytest.raises(UserError, match=r"^unknown method 'romme'.*did you mean 'rome'"):
        harness.edit(llama, FACTS, "romme", store=tmp_path)


def test_a_suite_is_run_from_a_program(doors):
    results = harness.run(doors[0].parent / "sequence.yaml", only="method=ft-l", store=doors[0])
    assert [path.name for path in results.cells] == [doors[1]["sequence"].folder]
    assert results.missing == {}
    scores = results.scores()
    assert set(scores["axis"]) >= {"reliability", "generality", "locality"}
    assert scores["score"].between(0, 1).all()
