from harness import registry
from harness.models.edited import WeightEditedModel
from harness.models.weights import weight_hash
from harness.records import DataRef, EditRequest
from harness.tokens import joint_query
from methods.none import Unedited
from tests.helpers.tiny_models import tiny_model


def test_the_unedited_reference_is_registered_and_does_not_edit():
    assert registry.find_method("none") is Unedited
    assert not Unedited.spec.edits


def test_it_needs_nothing_and_leaves_model_and_answers_as_they_are():
    model = tiny_model("llama")
    before, editor = weight_hash(model.model), Unedited(Unedited.Hparams())
    assert editor.artifacts(model.ref, DataRef("zsre", "synthetic", 1), seed=0) == {}
    edited = editor.edit(model, [EditRequest("a", "Paris is", "Paris", "in Iceland", "")], {}, None)
    query = joint_query(model.tokenizer, "Paris is", "in Iceland")
    assert edited.generate([query]) == WeightEditedModel(model).generate([query])
    edited.revert()
    assert weight_hash(model.model) == before
