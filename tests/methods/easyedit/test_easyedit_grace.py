"""GRACE by EasyEdit's own code, beside ours."""

import os

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from tests.helpers.tiny_edits import FACTS, queries_of
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
    "distance": "euclidean",
    "radius": 0.2,
    "expand": "coverage",
    "start": "cold",
    "replace": "last",
    "lr": 2.0,
    "steps": 12,
    "batch": 4,
    "implementation": "faithful-easyedit",
}
TARGET, DATA = ModelRef("tiny/llama", "pretrained", source="nowhere"), DataRef("tiny", "synthetic", 4, train=8)


@pytest.mark.easyedit
@pytest.mark.parametrize("changes", [{}, {"start": "warm", "replace": "prompt", "radius": 4.0}])
def test_it_answers_as_our_faithful_variant_does_act_after_act(kept, model, changes):
    """Also where keys split each other's radii, or one is widened to reach another prompt."""
    values = VALUES | changes
    for requests in (reversed_facts(3), REQUESTS):
        editor = editor_of("grace", VALUES, **changes)
        found, expected = theirs(kept, editor, model, requests), ours("grace", values, model, requests)
        alike = share_alike(found, expected, questions(model))
        figures = found.diagnostics(), expected.diagnostics()
        print(f"{model.ref.name} {changes}: {alike:.0%} alike, {[dict(figure) for figure in figures]}")
        assert alike == 1
        assert changed_share(expected, model, questions(model)) > 0
        assert figures[0]["keys"] == figures[1]["keys"]
        assert figures[0]["final_loss"] == pytest.approx(figures[1]["final_loss"], rel=1e-6)
        found.revert()
        assert weights_there(editor, model)
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.easyedit
def test_without_workarounds_it_is_what_easyedit_is(kept, model):
    queries = questions(model)
    first = theirs(kept, editor_of("grace", VALUES, without=["one-by-one"]), model, REQUESTS)
    assert first.diagnostics()["keys"] == 1
    assert share_alike(first, ours("grace", VALUES, model, REQUESTS[:1]), queries) == 1
    first.revert()
    others = theirs(kept, editor_of("grace", VALUES, without=["given-values"]), model, REQUESTS)
    others.revert()
    expected = ours("grace", VALUES, model, REQUESTS).diagnostics()["final_loss"]
    assert others.diagnostics()["final_loss"] != pytest.approx(expected, rel=1e-6), "other values to start from"


@pytest.mark.easyedit
def test_without_the_key_of_its_prompt_a_question_is_read_where_the_last_edit_was(kept, model):
    """The last fact has the longest prompt, so the other keys lie where nobody looks for them."""
    queries = queries_of(model, FACTS[:-1])
    stale = theirs(kept, editor_of("grace", VALUES, without=["prompt-key"]), model, REQUESTS)
    forced, generated = stale.teacher_forced(queries), stale.generate(queries)
    stale.revert()
    found = theirs(kept, editor_of("grace", VALUES), model, REQUESTS)
    assert found.teacher_forced(queries) != forced
    assert found.generate(queries) == generated
    found.revert()


@pytest.mark.easyedit
@pytest.mark.parametrize(
    ("option", "value", "fix"),
    [
        ("implementation", "corrected", 'implementation: "faithful-easyedit"'),
        ("distance", "cosine", 'distance: "euclidean"'),
        ("without", ["prompt-keys"], "did you mean 'prompt-key'"),
    ],
)
def test_what_it_has_no_word_for_is_refused_when_a_run_is_planned(option, value, fix):
    with pytest.raises(UserError) as caught:
        editor_of("grace", VALUES, **{option: value}).artifacts(TARGET, DATA, 0)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "layer"), [("llama", "model.layers[1].mlp.down_proj"), ("gptj", "transformer.h[1].mlp.fc_out")]
)
def test_its_options_are_those_of_the_files_that_it_ships(small_model, architecture, layer):
    options = editor_of("grace", VALUES, replace="prompt", start="warm").options(small_model(architecture))
    assert options["inner_params"] == [f"{layer}.weight"]
    assert (options["eps"], options["edit_lr"], options["n_iter"]) == (0.2, 2.0, 12)
    assert (options["replacement"], options["val_init"], options["eps_expand"]) == (
        "replace_prompt",
        "warm",
        "coverage",
    )
