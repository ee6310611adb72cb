"""Suites of suites: which suites they name, and what commands do with them."""

import json

import pytest

from harness.cli import main
from harness.errors import UserError
from harness.suite.collection import read_collection
from harness.suite.load import find_suite, load_suite
from tests.suite.conftest import BASE

SUITES = ("plugins", "cost", "more_models", "unrelated_ratio", "anchors", "search_init", "unseen_types")


def test_a_suite_of_suites_lists_each_once_also_those_of_others_and_is_no_ordinary_suite(write):
    one = write(name="one.yaml")
    write(name="two.yaml")
    inner = write(base="name: inner\nsuites: [two.yaml, one.yaml]\n", name="inner.yaml")
    outer = write(base="name: outer\ndescription: D\nsuites: [one.yaml, inner.yaml, main_table]\n", name="outer.yaml")
    found = read_collection(outer)
    assert (found.name, found.description, found.suites) == ("outer", "D", ("one.yaml", "two.yaml", "main_table"))
    assert read_collection(inner).suites == ("two.yaml", "one.yaml")
    assert read_collection(one) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: a\nsuites: [a.yaml]\n", "circle: a.yaml → a.yaml"),
        ("name: a\nsuites: [main_tabel]\n", r"a.yaml:2: no suite 'main_tabel' \(did you mean 'main_table'"),
        ("name: a\nsuites: []\n", "a.yaml:2"),
        ("name: a\nsuites: [main_table]\nmodels: [llama2-7b]\n", "a.yaml:3: .*models"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(write, content, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_collection(write(base=content, name="a.yaml"))
    assert "\n" not in str(refusal.value)


def test_the_paper_is_a_suite_of_suites_that_all_resolve_at_mini_scale():
    names = read_collection(find_suite("paper")).suites
    assert set(SUITES) <= set(names)
    for name in SUITES:
        suite = load_suite(find_suite(name), scale="mini")
        assert suite.tables
        assert suite.figures
        assert not [problem for method in suite.methods for problem in method.problems.values()]


def test_at_mini_scale_the_two_plug_ins_have_different_vocabularies():
    methods = load_suite(find_suite("plugins"), scale="mini").methods
    plugins = {next(iter(method.hparams.values())).values["plugin"] for method in methods if method.name == "onceedit"}
    assert plugins == {"tiny/tinyllama", "tiny/gptj"}


def test_commands_treat_all_suites_and_leave_out_those_in_which_a_filter_matches_nothing(write, capsys):
    write(name="one.yaml")
    write(base=BASE.replace("tiny", "two").replace("ft-l", "rome"), name="two.yaml")
    write(base="name: both\nsuites: [one.yaml, two.yaml]\n", name="both.yaml")
    assert main(["plan", "both.yaml", "--scale", "mini", "--edits", "2"]) == 0
    whole = capsys.readouterr().out
    assert "2 suites together: 6 different cells can run here, 6 to do" in whole, (
        "both have the cells of the unedited model"
    )
    assert main(["plan", "both.yaml", "--scale", "mini", "--edits", "2", "--only", "method=rome"]) == 0
    assert "left out: --only: the suite has no method 'rome'" in capsys.readouterr().out
    assert main(["plan", "both.yaml", "--scale", "mini", "--only", "method=memit"]) == 2
    assert "no method 'memit'" in capsys.readouterr().err
    assert main(["status", "both.yaml", "--scale", "mini", "--edits", "2", "--json", "--only", "method=rome"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"], "what is not JSON goes to stderr"
