"""DEFER by EasyEdit's own code, beside ours."""

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from tests.methods.easyedit.asking import (
    REQUESTS,
    editor_of,
    ours,
    questions,
    reversed_facts,
    share_alike,
    theirs,
    weights_there,
)

VALUES = {"layer": 1, "query": "sequence_last", "threshold": 0.5, "lr": 0.02, "steps": 12}
TARGET, DATA = ModelRef("tiny/llama", "pretrained", source="nowhere"), DataRef("tiny", "synthetic", 4, train=8)


@pytest.mark.easyedit
def test_it_answers_as_our_faithful_variant_does_act_after_act(kept, model):
    for requests in (reversed_facts(3), REQUESTS):
        editor = editor_of("defer", VALUES)
        found, expected = theirs(kept, editor, model, requests), ours("defer", VALUES, model, requests)
        queries = questions(model)
        alike = share_alike(found, expected, queries)
        print(f"{model.ref.name}: {alike:.0%} alike")
        assert alike == 1
        assert sum(scope >= 0.5 for scope in expected.scope(queries)) > 0, "some must be deferred"
        final_loss = expected.diagnostics()["final_loss"]
        assert found.diagnostics()["final_loss"] == pytest.approx(final_loss, rel=1e-3)
        found.revert()
        assert weights_there(editor, model)


@pytest.mark.easyedit
def test_without_calls_of_their_own_all_requests_but_the_first_are_dropped(kept, model):
    found = theirs(kept, editor_of("defer", VALUES, without=["one-by-one"]), model, REQUESTS)
    assert share_alike(found, ours("defer", VALUES, model, REQUESTS[:1]), questions(model)) == 1
    assert share_alike(found, ours("defer", VALUES, model, REQUESTS), questions(model)) < 1
    found.revert()


@pytest.mark.easyedit
def test_a_gate_that_reads_the_prompt_is_refused_when_a_run_is_planned():
    with pytest.raises(UserError, match="does not support query") as caught:
        editor_of("defer", VALUES, query="prompt_last").artifacts(TARGET, DATA, 0)
    assert 'query: "sequence_last"' in str(caught.value)


@pytest.mark.easyedit
def test_a_request_longer_than_the_context_is_refused_before_anything_is_sent(kept, model):
    long = reversed_facts(1)[0].__class__("record-7", "Paris is the capital of France " * 100, "", "Paris", "")
    with pytest.raises(UserError, match="record-7"):
        theirs(kept, editor_of("defer", VALUES), model, [long])
