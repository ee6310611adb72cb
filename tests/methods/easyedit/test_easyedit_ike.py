"""IKE through EasyEdit: the same answers as our own, after the same demonstrations."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common import threshold
from methods.common.similarity import embeddings_of
from methods.easyedit.ike import EasyEditIke, EasyEditIkeHparams, IkeInside
from methods.easyedit.inside import Bench
from methods.retrieval import Ike, IkeHparams
from methods.retrieval.as_easyedit import FILE, Examples, build, texts_of
from methods.retrieval.editor import ROLE
from tests.helpers.tiny_edits import Context
from tests.helpers.tiny_mend import REF, TRAIN, TinyContext
from tests.helpers.tiny_models import ARCHITECTURES
from tests.methods.easyedit.asking import REQUESTS, changed_share, ours, questions, share_alike, theirs
from tests.methods.easyedit.parity import three_layers

VALUES = {
    "nearest": 1,
    "threshold": 0.9,
    "similarity_subject": 0.67,
    "form": "new_fact",
    "fact_tokens": 128,
    "demonstrations": 3,
    "demonstration_tokens": 200,
    "implementation": "faithful-easyedit",
}
TARGET = ModelRef("tiny/llama", "pretrained", source="nowhere")


def adapter(**changes):
    return EasyEditIke(EasyEditIkeHparams(**VALUES | changes))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    """With a context for three demonstrations."""
    return three_layers(tmp_path_factory.mktemp("models"), request.param, max_positions=512)


@pytest.fixture
def written(tmp_path):
    spec = Ike(IkeHparams(**VALUES)).artifacts(TARGET, REF, 0)[ROLE]
    build(spec, TinyContext(None), tmp_path)
    return tmp_path


@pytest.mark.easyedit
@pytest.mark.parametrize("least", [0.9, "calibrated"])
def test_it_answers_as_our_own_does(tmp_path, written, kept, model, least):
    artifacts, changes = {ROLE: written}, {"threshold": least}
    if least == "calibrated":
        artifacts[threshold.ROLE] = tmp_path / "calibrated"
        artifacts[threshold.ROLE].mkdir()
        (artifacts[threshold.ROLE] / threshold.FILE).write_text(json.dumps({"threshold": 0.7}))
    found = theirs(kept, adapter(**changes), model, REQUESTS, artifacts)
    expected = ours("ike", VALUES | changes, model, REQUESTS, artifacts)
    asked = questions(model)
    alike = share_alike(found, expected, asked)
    print(f"{model.ref.name} {changes}: {alike:.0%} alike")
    assert alike == 1
    assert changed_share(expected, model, asked) > 0.3
    assert found.scope(asked) == pytest.approx(expected.scope(asked), abs=1e-6)
    found.revert()
    fewer = ours("ike", VALUES | changes | {"demonstrations": 2}, model, REQUESTS, artifacts)
    assert share_alike(fewer, expected, asked) < 1


def test_the_demonstrations_are_encoded_in_the_timed_part_of_an_edit_as_in_our_own(tmp_path, written, monkeypatch):
    """`apply` is timed, the constructor is not."""
    encoded, model = [], three_layers(tmp_path, "llama")
    theirs = SimpleNamespace(
        IKEHyperParams=lambda **options: options,
        ike_main=SimpleNamespace(),
        encode_ike_facts=lambda _encoder, records, _hparams: encoded.append(len(records)),
        apply_ike_to_model=lambda *_, **__: [],
    )
    monkeypatch.setitem(sys.modules, "easyeditor.models.ike", theirs)
    inside = IkeInside(Bench(model, adapter().options(model), frozenset(), {ROLE: written}, tmp_path, 0))
    assert encoded == []
    inside.apply(REQUESTS)
    assert encoded == [len(TRAIN)]


def test_the_demonstrations_nearest_to_the_edit_come_first(tmp_path, written):
    model = three_layers(tmp_path, "llama")
    records = json.loads((written / FILE).read_text())
    assert [record["prompt"] for record in records] == [record.prompt for record in TRAIN]
    copy, update, retain = texts_of(records[0])
    fact = f"{TRAIN[0].prompt} {TRAIN[0].target_new}"
    assert copy == f"New Fact: {fact}\nPrompt: {fact}\n\n"
    assert update == f"New Fact: {fact}\nPrompt: {TRAIN[0].rephrases[0]} {TRAIN[0].target_new}\n\n"
    assert retain == f"New Fact: {fact}\nPrompt: {TRAIN[0].locality[0].prompt} {TRAIN[0].locality[0].answer}\n\n"
    shown = Examples.load(written, model, 200).before(TRAIN[0].request(), 3)
    assert sorted(shown.split("\n\n")[:3]) == sorted(text.rstrip("\n") for text in (copy, update, retain))
    assert shown.endswith(f"New Fact: {fact}\nPrompt: ")
    vectors = Examples(embeddings_of(model), ["The capital of France", "Iceland"])
    assert vectors.before(TRAIN[0].request(), 1).startswith(("The capital", "Iceland"))
    with pytest.raises(UserError, match="every demonstration has more than 3 tokens"):
        Examples.load(written, model, 3)


def test_a_probe_without_an_answer_is_not_shown_as_a_fact(tmp_path):
    unknown = [
        replace(record, locality=tuple(replace(probe, has_answer=False) for probe in record.locality))
        for record in TRAIN
    ]
    spec = Ike(IkeHparams(**VALUES)).artifacts(TARGET, REF, 0)[ROLE]
    build(spec, TinyContext(None, (TRAIN[0], *unknown[1:])), tmp_path)
    assert [len(texts_of(record)) for record in json.loads((tmp_path / FILE).read_text())] == [3, 2, 2, 2]


def test_a_sequence_is_refused_and_so_is_what_easyedit_does_not_have(written):
    with pytest.raises(UserError, match="makes all edits at once"):
        Ike(IkeHparams(**VALUES)).extend(None, {"prompts": torch.ones(1)}, [], {ROLE: written}, Context())
    for changed in ({"nearest": 2}, {"form": "fact"}):
        for kind in (IkeHparams, EasyEditIkeHparams):
            with pytest.raises(ValidationError, match="faithful-easyedit states one fact"):
                kind(**VALUES | changed)
    with pytest.raises(UserError, match="does not support implementation"):
        adapter(implementation="corrected").check(TARGET)
    with pytest.raises(UserError, match="would download a sentence encoder"):
        adapter(without=["given-encoder"]).check(TARGET)
