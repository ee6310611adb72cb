"""UltraEdit: equal to a loop over edits and tokens with the primal system, in sequence, without training; and its rounds."""

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.routed import output_replaced
from harness.models.weights import weight_hash
from harness.tokens import joint_query
from methods.common.aggregation.network import Normalised
from methods.common.factors import GradientFactors
from methods.common.transforms import EditedMatrix
from methods.ultraedit import UltraEdit, UltraEditHparams
from tests.helpers.tiny_aggregation import edit_options, primal_shift, slow_pairs
from tests.helpers.tiny_edits import three_layers
from tests.helpers.tiny_mend import REF, REQUESTS, TinyContext, double
from tests.helpers.tiny_models import tiny_model


def method(architecture="llama", **changes):
    torch.set_num_threads(1)
    return UltraEdit(UltraEditHparams(**edit_options(architecture) | {"edit_lr": 1e-3, "ridge": 1.0} | changes))


def written_out(model, request):
    """Ids, and the positions and labels of the target tokens."""
    query = joint_query(model.tokenizer, request.prompt, request.target_new)
    ids = query.prompt_ids + query.target_ids
    return ids[:-1], range(len(query.prompt_ids) - 1, len(ids) - 1), query.target_ids


def slow_edit(model, hparams, requests):
    """The method written out: one edit at a time, statistics of all rows of a round so far, the primal system."""
    modules, rows = hparams.modules(model), {}
    for start in range(0, len(requests), hparams.batch):
        edits = [written_out(model, request) for request in requests[start : start + hparams.batch]]
        for number in range(hparams.rounds):
            pairs = slow_pairs(model, modules, edits)
            for keys, gradients in pairs.values():
                place = (number, keys.shape[1], gradients.shape[1])
                rows.setdefault(place, []).append(torch.cat([keys, gradients], 1))
            for name, (keys, gradients) in pairs.items():
                all_rows = torch.cat(rows[number, keys.shape[1], gradients.shape[1]])
                both = (torch.cat([keys, gradients], 1) - all_rows.mean(0)) / (all_rows.std(0) + 1e-7)
                k, u = both[:, : keys.shape[1]], both[:, keys.shape[1] :]
                wanted = -hparams.edit_lr * (k**2).sum(1)[:, None] * u
                with torch.no_grad():
                    modules[name].weight.add_(primal_shift(keys, wanted, hparams.ridge).T)


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_an_edit_is_a_loop_over_edits_and_tokens(architecture, rounds):
    model, editor = double(tiny_model(architecture)), method(architecture, rounds=rounds, batch=2)
    names = list(editor.hparams.modules(model))
    start = {name: model.model.get_parameter(name).clone() for name in names}
    edited = editor.edit(model, REQUESTS, {}, TinyContext(model))
    fast = {name: model.model.get_parameter(name).clone() for name in names}
    norm = torch.stack([(fast[name] - start[name]).norm() for name in names]).norm().item()
    assert edited.diagnostics()["change_norm"] == pytest.approx(norm, rel=1e-12), "of all rounds and batches together"
    edited.revert()
    slow_edit(model, editor.hparams, REQUESTS)
    changed = sum((model.model.get_parameter(name) - start[name]).norm() for name in names)
    error = (sum((model.model.get_parameter(name) - fast[name]).norm() for name in names) / changed).item()
    print(f"{architecture}, {rounds} rounds: UltraEdit - loop {error:.1e}")
    assert error < 1e-8


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_sequence_goes_on_from_the_statistics_and_comes_back(rounds):
    model, editor = double(tiny_model("llama")), method(batch=2, rounds=rounds)
    bits = weight_hash(model.model)
    whole = editor.edit(model, REQUESTS[:4], {}, TinyContext(model))
    expected = weight_hash(model.model)
    whole.revert()
    first = editor.edit(model, REQUESTS[:2], {}, TinyContext(model))
    second = editor.extend(model, first.state(), REQUESTS[2:4], {}, TinyContext(model))
    assert weight_hash(model.model) == expected
    assert second.state().keys() == whole.state().keys()
    assert {name.partition("/")[0] for name in whole.state()} == {str(number) for number in range(rounds)}
    assert all(torch.equal(value, whole.state()[name]) for name, value in second.state().items())
    first.revert()
    assert weight_hash(model.model) == bits


def test_a_second_round_sees_the_gradients_of_the_shifted_model():
    def loss(rounds):
        model, editor = double(tiny_model("llama")), method(rounds=rounds, batch=8, edit_lr=3e-3)
        edited = editor.edit(model, REQUESTS, {}, TinyContext(model))
        total = 0.0
        for request in REQUESTS:
            query = joint_query(model.tokenizer, request.prompt, request.target_new)
            ids = query.prompt_ids + query.target_ids
            with torch.no_grad():
                log_probs = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            total -= sum(log_probs[at - 1, ids[at]].item() for at in range(len(query.prompt_ids), len(ids)))
        edited.revert()
        return total

    assert loss(2) < loss(1)


def test_only_several_rounds_say_in_their_identity_that_their_statistics_are_separate():
    target = ModelRef("tinyllama-1.1b", "pretrained")
    assert not method(rounds=1).identity_on(target)
    assert method(rounds=2).identity_on(target)


def test_a_target_that_is_certain_has_no_gradient_but_counts():
    """As the only edit of a turn it changes nothing; its pairs are part of the statistics."""
    model, editor = double(tiny_model("llama")), method(rounds=1, batch=1)
    (target,) = joint_query(model.tokenizer, REQUESTS[0].prompt, REQUESTS[0].target_new).target_ids
    bits = weight_hash(model.model)
    with output_replaced(model.model.lm_head, lambda _, logits: logits.index_fill(-1, torch.tensor(target), 1e9)):
        edited = editor.edit(model, REQUESTS[:1], {}, TinyContext(model))
    assert weight_hash(model.model) == bits
    counts = [value.item() for name, value in edited.state().items() if name.endswith("count")]
    assert counts == [2, 2], "one token in each of two blocks, of both shapes"


def test_a_first_pair_alone_says_nothing():
    """Normalised by itself it is zero, as in the published code."""
    network = Normalised((EditedMatrix("a", 3, 2),), edit_lr=1.0, ridge=1.0).double()
    keys, gradients = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    where = torch.zeros(1, dtype=torch.long)
    network.observe({"a": GradientFactors(keys, gradients, where, where, (1, 1))})
    assert not network.changes(0, keys, gradients).any()


def test_half_precision_is_edited_in_float32_and_comes_back():
    model, editor = three_layers("llama", torch.bfloat16), method()
    bits = weight_hash(model.model)
    edited = editor.edit(model, REQUESTS, {}, TinyContext(model))
    assert model.value_matrix(1)[1].dtype == torch.float32
    assert edited.diagnostics()["change_norm"] > 0
    edited.revert()
    assert weight_hash(model.model) == bits


def test_further_matrices_are_edited_in_blocks_of_their_own():
    model, editor = tiny_model("llama"), method(layers=[0], matrices=["gate_proj"], further={"down_proj": [1]})
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    edited = editor.edit(model, REQUESTS, {}, TinyContext(model))
    changed = [name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"]
    edited.revert()
    with pytest.raises(UserError, match=r"tinyllama-1\.1b has no feed-forward matrix 'fc_out'"):
        method(further={"fc_out": [1]}).artifacts(ModelRef("tinyllama-1.1b", "pretrained"), REF, 0)
    with pytest.raises(UserError, match="has 22 layers, but the last edited one is 22") as caught:
        method(layers=[22]).artifacts(ModelRef("tinyllama-1.1b", "pretrained"), REF, 0)
    assert caught.value.fix == "layers: up to 21"


def test_blocks_may_count_from_the_last():
    model, changed, needs = double(tiny_model("llama")), [], []
    target = ModelRef("tinyllama-1.1b", "pretrained")
    for layers in ([1], [-1]):
        editor = method(layers=layers)
        needs.append(editor.memory(target, REF, 1))
        edited = editor.edit(model, REQUESTS, {}, TinyContext(model))
        changed.append(weight_hash(model.model))
        edited.revert()
    assert changed[0] == changed[1]
    last = method(layers=[target.spec.n_layers - 1]).memory(target, REF, 1)
    assert needs[1] == last != needs[0]
