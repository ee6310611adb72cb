"""Every method on models whose layers differ in their attention window or rotary positions, and on further layouts."""

import pytest

from harness import registry
from harness.errors import UserError
from harness.models.catalogue import CATALOGUE
from tests.helpers.method_bench import EDITING, Bench
from tests.helpers.small_suites import small_entry, write_checkpoint, write_records
from tests.helpers.tiny_models import FAMILIES, tiny_spec

QUICK = ("gemma3_text", "gpt2", "opt", "falcon-rw")
"""Each of them differs from the others in more than one respect; all others are slow tests."""
ALONE = 6
"""Number of the questions that are asked one by one too."""
NEED_MASKS = ("rome", "memit", "alphaedit", "grace")
"""Methods that rerun a part of each text."""


def families(names=FAMILIES):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


CASES = [
    pytest.param(family, method, marks=[] if family in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for method in EDITING
    if not (family == "falcon-rw" and method in NEED_MASKS)
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
    options = {"matrices": list(tiny_spec(family).layout.matrices), "v_steps": 8}
    known = registry.find_method(method).Hparams.model_fields
    options = {name: value for name, value in options.items() if name in known}
    bench = Bench(checkpoints, artifact_store, method, family, **options)
    state, before = bench.state(), bench.unedited()
    edited = bench.edit()
    forced, generated = bench.answers(edited)
    assert (forced, generated) != before
    assert [edited.teacher_forced([query])[0] for query in bench.queries[:ALONE]] == forced[:ALONE]
    assert [edited.generate([query])[0] for query in bench.queries[:ALONE]] == generated[:ALONE]
    edited.revert()
    assert bench.state() == state


@pytest.mark.parametrize("method", NEED_MASKS)
def test_a_method_that_reruns_parts_of_a_text_refuses_alibi_before_anything_runs(method, checkpoints, artifact_store):
    with pytest.raises(
        UserError, match=f"{method} reruns parts of a text .* small-falcon-rw cannot take: it has ALiBi"
    ):
        Bench(checkpoints, artifact_store, method, "falcon-rw")


def test_mend_names_the_matrices_that_a_family_has_before_anything_runs(checkpoints, artifact_store):
    with pytest.raises(UserError, match="small-gpt2 has no feed-forward matrix 'down_proj'") as caught:
        Bench(checkpoints, artifact_store, "mend", "gpt2", matrices=["down_proj"])
    assert caught.value.fix == "matrices: [c_fc, c_proj]"


@pytest.mark.parametrize("family", families([name for name in FAMILIES if name not in ("falcon-rw", "gpt_neo")]))
def test_a_plug_in_may_have_layers_of_several_kinds(family, checkpoints, artifact_store):
    bench = Bench(checkpoints, artifact_store, "onceedit", "llama", plugin=f"small-{family}")
    before = bench.unedited()
    edited = bench.edit()
    assert bench.answers(edited) != before


def test_a_plug_in_with_alibi_is_refused_before_anything_runs(checkpoints, artifact_store):
    with pytest.raises(UserError, match=r"onceedit's plug-in .* small-falcon-rw cannot take"):
        Bench(checkpoints, artifact_store, "onceedit", "llama", plugin="small-falcon-rw")


def test_a_plug_in_whose_window_counts_columns_is_refused_before_anything_runs(checkpoints, artifact_store):
    with pytest.raises(UserError, match="small-gpt_neo cannot be a plug-in"):
        Bench(checkpoints, artifact_store, "onceedit", "llama", plugin="small-gpt_neo")
