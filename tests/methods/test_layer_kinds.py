"""Every method on models whose layers differ in their attention window or rotary positions, and on further layouts."""

import pytest

from harness.errors import UserError
from harness.models.catalogue import CATALOGUE
from tests.helpers.method_bench import EDITING, Bench
from tests.helpers.small_suites import small_entry, write_checkpoint, write_records
from tests.helpers.tiny_models import FAMILIES

NORMED = ("gemma2", "gemma3_text")
"""They normalise what a feed-forward module adds to the residual stream."""
MATRICES = {
    "phi3": ["gate_up_proj", "down_proj"],
    "gpt_neo": ["c_fc", "c_proj"],
    "gpt_neox": ["dense_h_to_4h", "dense_4h_to_h"],
}
"""Names of the feed-forward matrices that MEND edits, where they are not those of Llama."""
CASES = [
    pytest.param(family, method, marks=[] if family == "gemma3_text" else pytest.mark.slow)
    for family in FAMILIES
    for method in EDITING
    if not (method == "memit" and family in NORMED)
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of each family and of the plug-in, and records."""
    home = tmp_path_factory.mktemp("families")
    write_records(home / "records")
    with pytest.MonkeyPatch.context() as patch:
        for architecture in ("llama", *FAMILIES):
            made = small_entry(architecture, str(write_checkpoint(home / architecture, architecture)))
            patch.setitem(CATALOGUE, made.name, made)
        yield home


@pytest.mark.parametrize(("family", "method"), CASES)
def test_an_edit_changes_answers_whatever_the_batch_and_is_undone_bit_for_bit(
    family, method, checkpoints, artifact_store
):
    options = {"matrices": MATRICES[family]} if method == "mend" and family in MATRICES else {}
    bench = Bench(checkpoints, artifact_store, method, family, **options)
    state, before = bench.state(), bench.unedited()
    edited = bench.edit()
    forced, generated = bench.answers(edited)
    assert (forced, generated) != before
    assert [edited.teacher_forced([query])[0] for query in bench.queries] == forced
    assert [edited.generate([query])[0] for query in bench.queries] == generated
    edited.revert()
    assert bench.state() == state


@pytest.mark.parametrize("family", NORMED)
def test_memit_refuses_a_model_that_normalises_what_it_would_write_before_anything_runs(
    family, checkpoints, artifact_store
):
    with pytest.raises(UserError, match=f"small-{family} normalises what each adds") as caught:
        Bench(checkpoints, artifact_store, "memit", family)
    assert caught.value.fix == "method: rome"


@pytest.mark.parametrize(
    "family", ["gemma3_text", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gemma2"))]
)
def test_a_plug_in_may_have_layers_of_several_kinds(family, checkpoints, artifact_store):
    bench = Bench(checkpoints, artifact_store, "onceedit", "llama", plugin=f"small-{family}")
    before = bench.unedited()
    edited = bench.edit()
    assert bench.answers(edited) != before


def test_a_plug_in_whose_window_counts_columns_is_refused_before_anything_runs(checkpoints, artifact_store):
    with pytest.raises(UserError, match="small-gpt_neo cannot be a plug-in"):
        Bench(checkpoints, artifact_store, "onceedit", "llama", plugin="small-gpt_neo")
