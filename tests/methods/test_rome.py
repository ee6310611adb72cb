"""ROME: the key is mapped to its new value, by a matrix of rank one, fact after fact, layer after layer; failures undo it all."""

import dataclasses

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.routed import output_replaced
from harness.models.weights import weight_hash
from harness.records import DataRef
from methods.common.aligned import enter
from methods.common.rewrites import rewrite
from methods.common.solves import Factor
from methods.common.values import optimise
from methods.rome import Rome, RomeHparams, rank_one
from tests.helpers.tiny_models import catalogued_families, rounding
from tests.helpers.tiny_rome import (
    MOMENTS,
    PREFIXES,
    VALUE,
    SpoilingContext,
    TinyContext,
    able_model,
    easy_requests,
    probability,
    random_moment,
    read_moment,
    requests,
    watch,
    write_anchor,
    write_moments,
    write_prefixes,
)

MODES = ("rome", "prompt", "prefix_mean")
LONG = {"v_steps": 120, "v_clamp": 50.0, "v_weight_decay": 0.0, "kl_weight": 0.0}
"""An optimisation that converges."""
NORMS = {0: 0.7, 1: 1.3}
"""Reference norms of values by layer."""


def rome(**changes):
    values = VALUE | MOMENTS | {"key_mode": "rome", "moments": "identity", "prefixes": [[5, 1]]}
    return Rome(RomeHparams(**values | changes))


def edit(model, folder, facts, context=None, **changes):
    method = rome(**changes)
    artifacts = {"prefixes": write_prefixes(folder / "prefixes")}
    if method.hparams.moments != "identity":
        artifacts["moments"] = write_moments(folder / "moments", model, method.hparams.layers)
    if method.hparams.norm_anchor:
        artifacts["anchor"] = write_anchor(folder / "anchor", NORMS)
    return method.edit(model, facts, artifacts, context or TinyContext())


def matrix(model, layer):
    return model.value_matrix(layer)[1].detach().clone()


def value_of(model, request, layer, **changes):
    """δ of a request on the model as it is."""
    made = rewrite(model, request, PREFIXES, "joint")
    scale = watch(model, layer, made.contexts[0].ids, made.contexts[0].pivot)[1].norm()
    stream = enter(model, made.rows, layer + 1)
    return optimise(model, [made], stream, layer + 1, scale[None], rome(**changes).hparams).delta_ND[0]


def keys_and_values(model, request, layer):
    """Of the plain prompt and behind each prefix, one unpadded row through the whole model at a time."""
    rows = rewrite(model, request, PREFIXES, "joint").contexts
    keys, values, _ = zip(*(watch(model, layer, row.ids[: row.pivot + 1], row.pivot) for row in rows), strict=True)
    return torch.stack(keys), torch.stack(values)


@pytest.mark.parametrize("moments", ["identity", "train_prompts"])
@pytest.mark.parametrize("mode", MODES)
def test_the_key_is_mapped_to_its_new_value(model, tmp_path, mode, moments):
    (request,) = requests()[:1]
    delta_D = value_of(model, request, 1)
    before_CD = keys_and_values(model, request, 1)[1]
    edit(model, tmp_path, [request], layers=[1], key_mode=mode, moments=moments)
    after_CD = keys_and_values(model, request, 1)[1]
    if mode == "prefix_mean":
        wanted_D, got_D = before_CD[0] + delta_D, after_CD.mean(0)
    else:
        wanted_D, got_D = before_CD[0] + delta_D, after_CD[0]
    error = ((got_D - wanted_D).norm() / delta_D.norm()).item()
    print(f"{model.spec.architecture} {mode} {moments}: W'k - v* {error:.1e}")
    assert delta_D.norm() > 0.1
    # GPT-J computes attention scores in float32 whatever the model is
    assert error < rounding(model.spec.architecture, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_the_change_has_rank_one_and_its_direction_is_the_key_divided_by_the_moment(llama, tmp_path, mode):
    (request,) = requests()[:1]
    before_VK = matrix(llama, 1)
    keys_CK, _ = keys_and_values(llama, request, 1)
    edit(llama, tmp_path, [request], layers=[1], key_mode=mode, moments="train_prompts")
    change_VK = matrix(llama, 1) - before_VK
    singular = torch.linalg.svdvals(change_VK)
    assert singular[1] < 1e-12 * singular[0]
    key_K = keys_CK[0] if mode == "prompt" else keys_CK.mean(0)
    toward_K = torch.linalg.solve(read_moment(tmp_path / "moments", 1), key_K)
    along_K = torch.linalg.svd(change_VK).Vh[0]
    torch.testing.assert_close((toward_K @ along_K).abs() / toward_K.norm(), torch.ones(()).double())


@pytest.mark.parametrize("mode", MODES)
def test_the_formula_is_that_of_the_paper(mode):
    generator = torch.Generator().manual_seed(0)
    keys_CK, values_CV = (torch.randn(4, width, generator=generator).double() for width in (9, 5))
    delta_V, moment_KK = torch.randn(5, generator=generator).double(), random_moment(9)
    shift_KV = rank_one(keys_CK, values_CV, delta_V, Factor.of(moment_KK), mode)
    toward_K = keys_CK[0] if mode == "prompt" else keys_CK.mean(0)
    mapped_K = keys_CK.mean(0) if mode == "prefix_mean" else keys_CK[0]
    now_V = values_CV.mean(0) if mode == "prefix_mean" else values_CV[0]
    u_K = torch.linalg.inv(moment_KK) @ toward_K
    expected_KV = torch.outer(u_K, values_CV[0] + delta_V - now_V) / (mapped_K @ u_K)
    torch.testing.assert_close(shift_KV, expected_KV, rtol=1e-9, atol=1e-12)


def test_the_target_becomes_likely(model, tmp_path):
    (request,) = easy_requests(model)[:1]
    assert probability(model, request) < 0.1
    edited = edit(model, tmp_path, [request], layers=[1], **LONG)
    assert probability(model, request) > 0.9
    assert edited.diagnostics()["value_probability"] > 0.9


def test_facts_follow_one_another_on_the_same_weights(model, tmp_path):
    facts = [*requests()[:2], *easy_requests(model)[:1]]
    edited = edit(model, tmp_path, facts)
    in_one_go = matrix(model, 0)
    edited.revert()
    for fact in facts:
        edit(model, tmp_path, [fact])
    assert torch.equal(matrix(model, 0), in_one_go)


def test_with_an_anchor_every_value_of_a_sequence_has_the_norm_of_its_layer(model, tmp_path):
    """Against a loop over facts and layers in which the whole model is asked for each vector."""
    facts, layers = [*requests()[:2], *easy_requests(model)[:1]], [0, 1]
    edited = edit(model, tmp_path, facts, layers=layers, norm_anchor=3)
    fast = [matrix(model, layer) for layer in layers]
    edited.revert()
    start = [matrix(model, layer) for layer in layers]
    for fact in facts:
        for layer in layers:
            keys_CK, values_CV = keys_and_values(model, fact, layer)
            value_V = values_CV[0] + value_of(model, fact, layer)
            change_V = NORMS[layer] * value_V / value_V.norm() - values_CV[0]
            u_K = keys_CK.mean(0) / keys_CK.mean(0).norm()
            model.value_matrix(layer)[1].add_(torch.outer(change_V, u_K) / (keys_CK[0] @ u_K))
            row = rewrite(model, fact, (), "joint").contexts[0]
            assert watch(model, layer, row.ids, row.pivot)[1].norm().item() == pytest.approx(NORMS[layer], rel=1e-5)
    slow = [matrix(model, layer) for layer in layers]
    changed = sum((new - old).norm() for new, old in zip(slow, start, strict=True))
    error = (sum((a - b).norm() for a, b in zip(fast, slow, strict=True)) / changed).item()
    print(f"{model.spec.architecture}: anchored ROME - loop {error:.1e}")
    assert error < rounding(model.spec.architecture, 1e-9)


def test_a_weighted_norm_turns_the_update_toward_the_key(llama, tmp_path):
    """As C + λI in place of C."""
    (request,), before_VK = requests()[:1], matrix(llama, 1)
    keys_CK, _ = keys_and_values(llama, request, 1)
    edit(llama, tmp_path, [request], layers=[1], moments="train_prompts", norm_weight=3.0)
    moment_KK = read_moment(tmp_path / "moments", 1)
    toward_K = torch.linalg.solve(moment_KK + 3.0 * torch.eye(len(moment_KK)), keys_CK.mean(0))
    along_K = torch.linalg.svd(matrix(llama, 1) - before_VK).Vh[0]
    torch.testing.assert_close((toward_K @ along_K).abs() / toward_K.norm(), torch.ones(()).double())
    with pytest.raises(ValueError, match="norm_weight changes nothing with moments: identity"):
        rome(norm_weight=3.0)


def test_a_regulariser_that_is_off_is_not_part_of_a_cells_identity():
    plain, regularised = rome().hparams, rome(norm_anchor=3, v_probable_stop=2).hparams
    assert set(regularised.identity()) - set(plain.identity()) == {"norm_anchor", "v_probable_stop"}
    assert "norm_weight" not in plain.identity()


def test_layers_follow_one_another_each_with_a_value_of_its_own(llama, tmp_path):
    """The second layer's value is found on the model with the first already changed."""
    (request,) = easy_requests(llama)[:1]
    before = [matrix(llama, layer) for layer in (0, 1)]
    edited = edit(llama, tmp_path, [request], layers=[0, 1], v_loss_stop=0.0)
    together = [matrix(llama, layer) for layer in (0, 1)]
    for old, new in zip(before, together, strict=True):
        assert torch.linalg.matrix_rank(new - old, rtol=1e-10) == 1
    edited.revert()
    for layer in (0, 1):
        edit(llama, tmp_path, [request], layers=[layer], v_loss_stop=0.0)
    torch.testing.assert_close([matrix(llama, layer) for layer in (0, 1)], together, rtol=1e-10, atol=1e-12)


def test_only_the_matrices_of_the_layers_change_and_they_come_back(model, tmp_path):
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    bits = weight_hash(model.model)
    edited = edit(model, tmp_path, requests(), layers=[1])
    changed = [name for name, parameter in model.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == [model.value_matrix(1)[0]]
    edited.revert()
    assert weight_hash(model.model) == bits


def test_half_precision_learns_too_and_comes_back(tmp_path):
    model = able_model("gptj", torch.bfloat16)
    bits, (request,) = weight_hash(model.model), easy_requests(model)[:1]
    edited = edit(model, tmp_path, [request], layers=[1], **LONG)
    assert probability(model, request) > 0.9
    assert matrix(model, 1).dtype == torch.float32
    edited.revert()
    assert weight_hash(model.model) == bits
    assert matrix(model, 1).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("subject", "Marie Curie", "not in its prompt"),
        ("target_new", "", "nothing to score"),
        ("prompt", "Paris " * 300 + "東京", "reads at most 256"),
    ],
)
def test_a_record_that_cannot_be_edited_is_named_and_the_model_is_as_it_was(llama, tmp_path, field, value, said):
    bits = weight_hash(llama.model)
    facts = requests()
    facts[3] = dataclasses.replace(facts[3], **{field: value})
    with pytest.raises(UserError, match=rf"^record r3: .*{said}"):
        edit(llama, tmp_path, facts)
    assert weight_hash(llama.model) == bits


def test_a_loss_that_is_no_number_gives_the_model_back(llama, tmp_path):
    """It becomes one after the first fact."""
    bits, context = weight_hash(llama.model), SpoilingContext(llama)
    with pytest.raises(UserError, match=r"^record r1: the loss of its value is not a number at step 0 → "):
        edit(llama, tmp_path, requests(), context)
    context.restored()
    assert weight_hash(llama.model) == bits
    assert not any(module._forward_hooks for module in llama.model.modules())


def test_time_and_progress_are_counted(llama, tmp_path):
    context = TinyContext()
    edit(llama, tmp_path, requests(), context, moments="train_prompts")
    assert context.phases == ["edit"]
    assert context.advanced == [1] * 4


TARGET = ModelRef("gpt-j-6b", "pretrained", sha256="x")
DATA = DataRef("counterfact", "", 4, train=8, sha256="y")


def test_prefixes_are_needed_always_and_moments_only_where_they_are_used():
    assert set(rome().artifacts(TARGET, DATA, 0)) == {"prefixes"}
    assert set(rome(moments="train_prompts").artifacts(TARGET, DATA, 0)) == {"prefixes", "moments"}
    assert set(rome(norm_anchor=3).artifacts(TARGET, DATA, 0)) == {"prefixes", "anchor"}


def test_a_layer_that_the_model_does_not_have_is_found_by_the_plan():
    with pytest.raises(UserError, match="gpt-j-6b has 28 layers, but the last edited one is 28 → layers: up to 27"):
        rome(layers=[3, 28]).artifacts(TARGET, DATA, 0)


@pytest.mark.parametrize("layers", [[2, 1], [1, 1], [], [-1]])
def test_layers_must_ascend(layers):
    with pytest.raises(ValueError, match="layers"):
        rome(layers=layers)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "gpt_neo", "gpt_neox"])
def test_the_vector_that_the_matrix_now_adds_is_the_one_that_was_optimised(architecture, tmp_path):
    """In the matrix's own output, whatever the block does with it: there it gives the fact the probability that was reached."""
    with catalogued_families():
        model = able_model(architecture)
        request = min(easy_requests(model), key=lambda request: probability(model, request))
        row = rewrite(model, request, (), "joint").contexts[0]
        before, (_, plain_V, _) = probability(model, request), watch(model, 1, row.ids, row.pivot)
        artifacts = {"prefixes": write_prefixes(tmp_path, texts=(), groups=())}
        edited = rome(layers=[1]).edit(model, [request], artifacts, TinyContext())
        _, value_V, _ = watch(model, 1, row.ids, row.pivot)
        edited.revert()
        if model.layout.value_norm:
            assert float(value_V.norm()) == pytest.approx(float(plain_V.norm()), rel=1e-5), (
                "the norm ignores its length"
            )

        def add(_, outputs_1TV):
            moved_1TV = outputs_1TV.clone()
            moved_1TV[0, row.pivot] += value_V - plain_V
            return moved_1TV

        with output_replaced(model.module(model.layout.value_matrix, 1), add):
            reached = probability(model, request)
        assert reached > 1.01 * before
        assert reached == pytest.approx(
            edited.diagnostics()["value_probability"], rel=rounding(architecture, 1e-5, 1e-3)
        )
