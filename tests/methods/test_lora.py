"""LoRA as a method: targets become likely, only linear layers of blocks change, and every bit comes back."""

import pytest
import torch

from harness.errors import UserError
from harness.models.weights import weight_hash
from harness.tokens import joint_query
from methods.lora import Lora, LoraHparams
from tests.helpers.tiny_edits import FACTS, Context, requests_of, three_layers


def lora(**changes):
    values = {"rank": 4, "lr": 0.02, "weight_decay": 0.0, "steps": 12, "batch": 8, "micro_batch": 2, "loss_stop": 0.0}
    return Lora(LoraHparams(**values | changes))


def loss_of(model, facts):
    """Mean over facts of -log p of a target token, one unpadded row at a time."""
    total = 0.0
    for prompt, target in facts:
        query = joint_query(model.tokenizer, prompt, target)
        ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids)
        with torch.no_grad():
            log_probs = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(log_probs[at - 1, ids[at]].item() for at in range(start, len(ids))) / (len(ids) - start)
    return total / len(facts)


def test_targets_become_likely_and_only_linear_layers_of_blocks_change():
    model = three_layers("llama")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    bits, start = weight_hash(model.model), loss_of(model, FACTS)
    edited = lora().edit(model, requests_of(FACTS), {}, Context())
    assert loss_of(model, FACTS) < 0.7 * start
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "layers." in name and "proj" in name}
    edited.revert()
    assert weight_hash(model.model) == bits


def test_only_the_named_matrices_change_and_the_defaults_have_the_identity_of_old_cells():
    model = three_layers("llama")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    method = lora(steps=2, matrices=["q_proj", "v_proj"], scale=4.0)
    method.edit(model, requests_of(FACTS), {}, Context())
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert method.hparams.identity().items() >= {"matrices": ["q_proj", "v_proj"], "scale": 4.0}.items()
    assert not {"matrices", "scale"} & set(lora().hparams.identity())


def test_the_first_loss_is_that_of_the_unedited_model_whatever_the_micro_batch():
    model = three_layers("llama")
    expected = loss_of(model, FACTS)
    for micro_batch in (1, 4):
        edited = lora(steps=1, micro_batch=micro_batch).edit(model, requests_of(FACTS), {}, Context())
        edited.revert()
        assert edited.diagnostics()["final_loss"] == pytest.approx(expected, rel=1e-9)


def test_half_precision_learns_in_float32_and_comes_back():
    model = three_layers("llama", torch.bfloat16)
    bits = weight_hash(model.model)
    edited = lora(steps=2).edit(model, requests_of(FACTS), {}, Context())
    assert model.value_matrix(1)[1].dtype == torch.float32
    edited.revert()
    assert weight_hash(model.model) == bits


def test_a_rate_that_is_too_large_is_one_line():
    model = three_layers("llama")
    bits = weight_hash(model.model)
    with pytest.raises(UserError, match="lora: the loss is not a number at step"):
        lora(lr=1e300, steps=3).edit(model, requests_of(FACTS), {}, Context())
    assert weight_hash(model.model) == bits
