import pytest

from harness.errors import UserError
from harness.suite import load_suite
from tests.suite.conftest import BASE, named


def test_a_swept_option_replaces_its_entry_with_one_per_value(write):
    suite = load_suite(write("sweep:\n  methods.ft-l.hparams.lr: [1e-3, 1e-2]\n"))
    assert [entry.label for entry in suite.methods] == ["none", "ft-l.lr=0.001", "ft-l.lr=0.01"]
    assert [named(entry.hparams)["llama2-7b"].values["lr"] for entry in suite.methods[1:]] == [1e-3, 1e-2]
    assert named(suite.methods[1].hparams)["llama2-7b"].sources["lr"] == "suite suite.yaml:6"


def test_two_options_of_one_entry_form_a_grid(write):
    suite = load_suite(write("sweep: {methods.ft-l.lr: [1.0, 2.0], methods.ft-l.steps: [3, 4]}\n"))
    pairs = [
        (named(entry.hparams)["llama2-7b"].values["lr"], named(entry.hparams)["llama2-7b"].values["steps"])
        for entry in suite.methods[1:]
    ]
    assert pairs == [(1.0, 3), (1.0, 4), (2.0, 3), (2.0, 4)]


def test_options_of_different_entries_are_independent(write):
    path = write(
        "sweep: {datasets.zsre.edits: [10, 20], datasets.counterfact.edits: [30, 40]}\n",
        base=BASE.replace("}]", "}, counterfact]"),
    )
    suite = load_suite(path)
    assert [(entry.name, entry.edits) for entry in suite.datasets] == [
        ("zsre", 10), ("zsre", 20), ("counterfact", 30), ("counterfact", 40),
    ]  # fmt: skip


def test_swept_entries_that_become_equal_under_a_cap_are_merged(write):
    suite = load_suite(write("sweep: {datasets.zsre.edits: [10, 200, 1000]}\n"), scale="mini")
    assert [entry.edits for entry in suite.datasets] == [10, 50]


def test_a_name_with_dots_is_read_as_one_name(write):
    path = write(
        "sweep: {models.mistral-7b-v0.1.dtype: [float32, bfloat16]}\n", base=BASE.replace("gpt-j-6b", "mistral-7b-v0.1")
    )
    assert [entry.dtype for entry in load_suite(path).models] == [None, "float32", "bfloat16"]


def test_a_label_addresses_one_of_several_entries_of_a_method(write):
    path = write(
        "sweep: {methods.free.lr: [1.0, 2.0]}\n", base=BASE.replace("none", "{name: ft-l, label: free, steps: 3}")
    )
    assert [entry.label for entry in load_suite(path).methods] == ["free.lr=1.0", "free.lr=2.0", "ft-l"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("method.ft-l.lr: [1]", "must start with one of models, methods, datasets (did you mean 'methods'?)"),
        ("methods.ftl.lr: [1]", "matches no entry of methods (did you mean 'ft-l'?)"),
        ("methods.ft-l: [1]", "matches no entry of methods"),
        ("methods.ft-l.: [1]", "does not name an option to vary"),
        ("methods.ft-l.label: [a]", "does not name an option to vary"),
        ("methods.ft-l.hparams.lrr: [1]", "suite.yaml:5: unknown option 'lrr' of method 'ft-l' (did you mean 'lr'?)"),
        ("datasets.zsre.edts: [1]", "suite.yaml:5: unknown key 'edts' in datasets[0] (did you mean 'edits'?)"),
        ("datasets.zsre.edits.x: [1]", "there is no key 'x' in '100'"),
        ("methods.ft-l.lr: []", "suite.yaml:5: sweep.methods.ft-l.lr: is empty"),
        ("methods.ft-l.lr: 3", "sweep.methods.ft-l.lr: expected a list"),
        ("seeds: [1]", "other axes are already lists"),
    ],
)
def test_a_sweep_that_matches_nothing_is_refused_with_its_location(write, sweep, message):
    with pytest.raises(UserError) as caught:
        load_suite(write(f"sweep: {{{sweep}}}\n"))
    assert message in str(caught.value)
    assert "suite.yaml:5" in str(caught.value)


def test_a_value_that_is_swept_twice_is_refused(write):
    with pytest.raises(UserError, match=r"suite\.yaml:3: methods: 'ft-l\.lr=1\.0' is listed twice"):
        load_suite(write("sweep: {methods.ft-l.lr: [1.0, 1.0]}\n"))
