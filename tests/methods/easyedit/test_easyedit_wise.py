"""WISE by EasyEdit's own code, beside ours."""

import json

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common import prefixes
from methods.wise import Wise, WiseHparams, loc_prompts
from tests.helpers.tiny_edits import UNRELATED
from tests.helpers.tiny_wise import REF
from tests.methods.easyedit.asking import (
    REQUESTS,
    changed_share,
    editor_of,
    ours,
    questions,
    reversed_facts,
    share_alike,
    theirs,
    weights_there,
)

VALUES = {
    "layer": 1,
    "contexts": 2,
    "steps": 12,
    "lr": 0.1,
    "weight_decay": 1e-5,
    "decay": "all",
    "norm_constraint": 1.0,
    "mask_ratio": 0.3,
    "alpha": 0.2,
    "beta": 2.0,
    "gamma": 1.0,
    "stop_change": 1e-4,
    "stop_loss": 2e-2,
    "save_freq": 2,
    "merge_freq": 4,
    "density": 0.53,
    "memory": "retrieve",
    "act_ratio": 0.88,
    "reads": "sequence",
    "parallel": 1,
    "implementation": "faithful-easyedit",
}
TARGET = ModelRef("tiny/llama", "pretrained", source="nowhere")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    texts = ["Paris. ", "The mother tongue of Björk. "]
    (folder / prefixes.FILE).write_text(json.dumps({"groups": [[7, 1], [12, 1]], "prefixes": texts}))
    spared = [{"prompt": prompt, "answer": answer} for prompt, answer in UNRELATED]
    (folder / loc_prompts.FILE).write_text(json.dumps(spared))
    return {"prefixes": folder, "loc_prompts": folder}


@pytest.mark.easyedit
@pytest.mark.parametrize("changes", [{}, {"contexts": 0, "save_freq": 3, "merge_freq": 3, "norm_constraint": None}])
def test_it_answers_as_our_faithful_variant_does_act_after_act(kept, model, given, changes):
    """Shards that are merged, finished or neither; unrelated rows that are longer than the edit and shorter."""
    values = VALUES | changes
    for requests in (reversed_facts(3), REQUESTS[:5]):
        editor = editor_of("wise", values)
        found = theirs(kept, editor, model, requests, given)
        expected = ours("wise", values, model, requests, given)
        alike = share_alike(found, expected, questions(model))
        threshold = found.diagnostics()["threshold"], expected.diagnostics()["threshold"]
        print(f"{model.ref.name} {changes}: {alike:.0%} alike, thresholds {threshold}")
        assert alike >= 0.95
        assert changed_share(expected, model, questions(model)) > 0
        assert threshold[0] == pytest.approx(threshold[1], rel=1e-3)
        found.revert()
        assert weights_there(editor, model)


@pytest.mark.easyedit
def test_without_the_switch_for_sequences_only_the_last_edit_is_left(kept, model, given):
    queries = questions(model)
    found = theirs(kept, editor_of("wise", VALUES, without=["sequential-edit"]), model, REQUESTS[:3], given)
    one_by_one = found.teacher_forced(queries)
    found.revert()
    # the masks are drawn for each edit then, so the last one alone is not it, but what the first ones say is nothing to it
    other_first = theirs(kept, editor_of("wise", VALUES), model, REQUESTS[:3], given)
    assert other_first.teacher_forced(queries) != one_by_one
    other_first.revert()


@pytest.mark.easyedit
@pytest.mark.parametrize("left_out", [["given-prefixes"], ["given-masks"]])
def test_it_draws_masks_and_prefixes_of_its_own_if_none_are_given(kept, model, given, left_out):
    values = VALUES | {"contexts": 10}
    given = given if "given-masks" in left_out else {"loc_prompts": given["loc_prompts"]}
    editor = editor_of("wise", values, without=left_out)
    assert sorted(editor.artifacts(TARGET, REF, 0)) == sorted(given)
    found = theirs(kept, editor, model, REQUESTS[:2], given)
    assert found.diagnostics()["memories"] == 1
    found.revert()


@pytest.mark.easyedit
def test_wise_merge_has_one_memory_for_all(kept, model, given):
    found = theirs(kept, editor_of("wise", VALUES, memory="merge"), model, REQUESTS[:4], given)
    queries = questions(model)
    assert found.teacher_forced(queries) == found.teacher_forced(queries), "it merges when it is asked, but only once"
    found.revert()


@pytest.mark.easyedit
@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"implementation": "corrected"}, 'implementation: "faithful-easyedit"'),
        ({"decay": "masked"}, 'decay: "all"'),
        ({"reads": "prompt"}, 'reads: "sequence"'),
        ({"weight_decay": 0.0}, "weight_decay: 1e-05"),
        ({"stop_loss": 0.5}, "stop_loss: 0.02"),
        ({"without": ["given-prefixes"]}, "contexts: 10"),
        ({"without": ["sequential"]}, "did you mean 'sequential-edit'"),
    ],
)
def test_what_it_has_no_word_for_is_refused_when_a_run_is_planned(changes, fix):
    with pytest.raises(UserError) as caught:
        editor_of("wise", VALUES, **changes).artifacts(TARGET, REF, 0)
    assert fix in str(caught.value)


@pytest.mark.easyedit
def test_it_needs_the_artifacts_of_our_own():
    needed = editor_of("wise", VALUES).artifacts(TARGET, REF, 3)
    own = Wise(WiseHparams(**VALUES)).artifacts(TARGET, REF, 3)
    assert {role: spec.key for role, spec in needed.items()} == {role: spec.key for role, spec in own.items()}
