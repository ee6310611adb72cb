"""SERAC: what the two networks learn, which prompts are routed, and answers in the target's own ids."""

import math

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.records import DataRef, EditRecord, EditRequest, Probe
from harness.suite.hparams import resolve
from harness.tokens import joint_query
from methods.serac import Serac
from methods.serac.memory import EditMemory, stated
from methods.serac.networks import Networks, ScopeClassifier, save, squared_distances
from methods.serac.routing import ScopedModel
from methods.serac.training import Task, Trainer, examples
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import EDITS, UNRELATED, FakeContext

HPARAMS = {
    "width": 16,
    "lr": 5e-3,
    "batch": 3,
    "steps": 40,
    "exchanged": 0.0,
    "clip": 100.0,
    "validation": 1,
    "validate_every": 10,
    "patience": 100,
}
RECORDS = tuple(
    EditRecord(str(n), prompt, "", target, "", rephrases=(f"{prompt} called",), locality=(Probe(other, "x"),))
    for n, ((prompt, target), (other, _)) in enumerate(zip(EDITS, UNRELATED, strict=True))
)


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    trainer = Trainer(tiny_model("llama", seed=7), HPARAMS, 0)
    return trainer, trainer.train(examples(RECORDS), FakeContext(None))


@pytest.fixture(scope="module")
def networks(trained, tmp_path_factory):
    trainer, _ = trained
    folder = tmp_path_factory.mktemp("networks")
    save(trainer.encoder, trainer.classifier.head, trainer.counterfactual, folder)
    return Networks.load(folder, torch.device("cpu"))


def memory(networks, *edits, tokens=64):
    requests = [EditRequest(str(n), prompt, "", target, "") for n, (prompt, target) in enumerate(edits)]
    return EditMemory.of(networks, {}, requests, tokens)


def test_training_lowers_both_losses_and_leaves_the_small_model_alone(trained):
    before = tiny_model("llama", seed=7).model.state_dict()
    _, looks = trained
    assert min(look.scope for look in looks) < 0.7 * looks[0].scope
    assert min(look.answer for look in looks) < looks[0].answer
    loaded = tiny_model("llama", seed=7)
    Trainer(loaded, {**HPARAMS, "steps": 1, "validate_every": 1}, 0).train(examples(RECORDS), FakeContext(None))
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_each_network_is_kept_as_it_was_at_its_best(trained):
    trainer, looks = trained
    order = torch.randperm(4, generator=_after_the_head()).tolist()
    held_out = [_task(examples(RECORDS)[order[-1]])]
    look = trainer._look(0, held_out)
    assert look.scope == pytest.approx(min(look.scope for look in looks))
    assert look.answer == pytest.approx(min(look.answer for look in looks))


def _after_the_head():
    generator = torch.Generator().manual_seed(0)
    torch.randn(HPARAMS["width"], tiny_model("llama").config.hidden_size, generator=generator)
    return generator


def _task(example):
    return Task(example.prompt, example.target, example.inside[-1], example.outside[0])


def test_the_scope_loss_is_the_balanced_entropy_of_all_pairs():
    trainer = Trainer(tiny_model("llama", seed=7), HPARAMS, 0)
    tasks = [_task(example) for example in examples(RECORDS)[:3]]
    with torch.no_grad():
        edits = trainer.classifier.embed([task.prompt for task in tasks]).double()
        questions = [trainer.classifier.embed([text]).double()[0] for text in _questions(tasks)]
    inside, outside = [], []
    for number, question in enumerate(questions):
        for place, edit in enumerate(edits):
            distance = max(float((question - edit).square().sum()), 1e-6)
            if number == place:
                inside.append(distance)
            else:
                outside.append(-math.log(1 - math.exp(-distance)))
    expected = sum(inside) / len(inside) / 2 + sum(outside) / len(outside) / 2
    assert trainer.scope_loss(tasks)[0].item() == pytest.approx(expected, rel=1e-4)


def _questions(tasks):
    return [*(task.inside for task in tasks), *(task.outside for task in tasks)]


def test_padding_does_not_change_what_texts_are_compared_by():
    encoder = tiny_model("llama", seed=7)
    classifier = ScopeClassifier(encoder, 8, torch.Generator().manual_seed(0))
    texts = ["Paris", "The mother tongue of Danielle Darrieux is", "Björk was born in"]
    with torch.no_grad():
        together = classifier.embed(texts)
        apart = torch.cat([classifier.embed([text]) for text in texts])
    torch.testing.assert_close(together, apart)
    assert squared_distances(apart, apart).diagonal().tolist() == [0, 0, 0]


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_in_scope_the_counterfactual_model_answers_and_elsewhere_the_unedited_one(architecture, networks):
    model = tiny_model(architecture, seed=3)
    edited = ScopedModel(model, networks, memory(networks, EDITS[0]), 0.999)
    inside = joint_query(model.tokenizer, EDITS[0][0], "Iceland and France")
    outside = joint_query(model.tokenizer, UNRELATED[1][0], "Paris")
    assert edited.scope([inside, outside])[0] == 1
    assert edited.scope([inside, outside])[1] < 0.999
    plain = ScopedModel(model, networks, memory(networks), 0.999)
    assert edited.generate([inside, outside])[1] == plain.generate([inside, outside])[1]
    assert edited.teacher_forced([inside, outside])[1] == plain.teacher_forced([inside, outside])[1]
    said = edited.generate([inside])[0]
    assert len(said) == len(inside.target_ids)
    assert edited.generate_until([inside], lambda row, id_: id_ == said[0]) == [said[:1]]


def test_with_one_tokenizer_teacher_forcing_is_that_of_the_counterfactual_model(networks):
    small = networks.counterfactual
    model = LoadedModel(small.ref, tiny_model("llama", seed=3).model, small.tokenizer)
    edited = ScopedModel(model, networks, memory(networks, EDITS[0]), 0.5)
    query = joint_query(model.tokenizer, EDITS[0][0], "France and Paris")
    front = joint_query(model.tokenizer, stated(*EDITS[0]) + EDITS[0][0], "France and Paris")
    assert front.target_ids == query.target_ids
    ids = torch.tensor([front.prompt_ids + front.target_ids[:-1]])
    with torch.no_grad():
        expected = small.model(input_ids=ids).logits[0, len(front.prompt_ids) - 1 :].argmax(-1).tolist()
    assert edited.teacher_forced([query]) == [expected]


def test_an_edit_that_is_too_long_is_refused_by_name(networks):
    with pytest.raises(UserError, match=r"record 1: serac's counterfactual model would read \d+ tokens") as caught:
        memory(networks, EDITS[0], (" ".join(["Paris"] * 40), "Iceland"), tokens=30)
    assert caught.value.fix.startswith("edit_tokens: ")


def test_one_training_serves_all_target_models_and_needs_train_records():
    method = Serac(Serac.Hparams.model_validate(resolve("serac", "llama2-7b", {}).values))
    data = DataRef("counterfactual", "synthetic", 4, train=4, sha256="0")
    keys = {
        method.artifacts(ModelRef(name, "pretrained", sha256=name), data, 0)["networks"].key
        for name in ("llama2-7b", "gpt-j-6b")
    }
    assert len(keys) == 1
    with pytest.raises(
        UserError, match="serac trains its scope classifier and counterfactual model on unrelated records"
    ):
        method.artifacts(ModelRef("llama2-7b", "pretrained"), DataRef("zsre", "synthetic", 4, sha256="0"), 0)
