"""Names of metrics and params in MLflow."""

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from harness.store.mlflow_names import flattened, valid_names

PARTS = st.lists(st.text(max_size=300), min_size=1, max_size=4).map(tuple)


@given(st.lists(PARTS, unique=True, max_size=8))
def test_every_name_becomes_one_that_mlflow_accepts_and_no_two_become_the_same(paths):
    names = valid_names(paths, "/")
    assert len(set(names.values())) == len(paths)
    for name in names.values():
        _validate_metric_name(name)
        _validate_param_name(name)


def test_a_valid_name_is_kept_and_another_stays_readable():
    names = valid_names([("scope", "share_below_0.3"), ("acc@1 (%)",), ("acc@1 [%]",), ("..",), ("OnceEdit+",)], "/")
    kept, first, second, dots, plus = names.values()
    assert kept == "scope/share_below_0.3"
    assert first.startswith("acc_1.")
    assert second.startswith("acc_1.")
    assert first != second
    assert dots.startswith("_.")
    assert plus.startswith("OnceEditplus.")


def test_leaves_with_a_separator_in_their_own_name_do_not_replace_each_other():
    leaves = flattened({"a": {"b": 1}, "a/b": 2}, "cost")
    assert leaves == {("cost", "a", "b"): 1, ("cost", "a/b"): 2}
    assert len(set(valid_names(leaves, "/").values())) == 2
