"""MEMIT: equal to a loop over rows and layers with the primal system; how residuals, batches and passes are shared."""

import dataclasses
import math

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.weights import weight_hash
from harness.records import DataRef
from harness.tokens import joint_query
from methods.common.aligned import PivotRow, advance, capturing, enter
from methods.common.moments_build import key_moments
from methods.common.rewrites import rewrite
from methods.common.solves import Factor, moment_ridge
from methods.common.values import optimise
from methods.memit import Memit, MemitHparams
from tests.helpers.tiny_models import catalogued_families, rounding
from tests.helpers.tiny_rome import (
    MOMENTS,
    VALUE,
    SpoilingContext,
    TinyContext,
    able_model,
    easy_requests,
    plain_stream,
    probability,
    read_moment,
    requests,
    slow_layers,
    targets_of,
    watch,
    write_anchor,
    write_moments,
    write_prefixes,
)

LAYERS = (0, 1)
LONG = {"v_steps": 120, "v_clamp": 50.0, "v_weight_decay": 0.0, "kl_weight": 0.0}
"""An optimisation that converges."""
LIGHT = {"moment_weight": 1e-9}
"""So little weight on what must be kept that a layer does all that it is asked to."""


NORM = 1.3
"""Reference norm of values."""


def memit(**changes):
    more = {"layers": LAYERS, "moment_weight": 2.0, "batch": 100, "micro_batch": 3}
    return Memit(MemitHparams(**VALUE | MOMENTS | more | changes))


def edit(model, folder, facts, context=None, **changes):
    method = memit(**changes)
    artifacts = {
        "prefixes": write_prefixes(folder / "prefixes"),
        "moments": write_moments(folder / "moments", model, method.hparams.layers),
    }
    if method.hparams.norm_anchor:
        artifacts["anchor"] = write_anchor(folder / "anchor", {LAYERS[-1]: NORM})
    return method.edit(model, facts, artifacts, context or TinyContext())


def matrices(model):
    return [model.value_matrix(layer)[1].detach().clone() for layer in LAYERS]


def tolerance(model):
    return rounding(model.spec.architecture, 1e-9)


def distance(found, expected, start):
    """Of two lists of matrices, as a share of what changed."""
    changed = sum((new - old).norm() for new, old in zip(expected, start, strict=True))
    return (sum((a - b).norm() for a, b in zip(found, expected, strict=True)) / changed).item()


def slow_edit(model, folder, facts, weight, norm=None):
    """The method written out: whole model, one unpadded row at a time, the primal system, weights changed in place."""

    def update(layer, keys_KN, residual_DN):
        system_KK = weight * read_moment(folder / "moments", layer) + keys_KN @ keys_KN.T
        return residual_DN @ keys_KN.T @ torch.linalg.inv(system_KK)

    slow_layers(model, facts, memit().hparams, update, norm)


@pytest.mark.parametrize("norm", [None, NORM], ids=["memit", "anchored"])
def test_an_edit_is_that_of_a_loop_over_rows_and_layers(model, tmp_path, norm):
    facts, start = [*requests(), *easy_requests(model)], matrices(model)
    edited = edit(model, tmp_path, facts, norm_anchor=norm and 3)
    fast = matrices(model)
    edited.revert()
    slow_edit(model, tmp_path, facts, weight=2.0, norm=norm)
    error = distance(fast, matrices(model), start)
    print(f"{model.spec.architecture}: MEMIT, anchor {norm} - loop {error:.1e}")
    assert error < tolerance(model)


def test_a_thousand_edits_are_solved_alike_over_edits_and_over_entries_of_a_key(model):
    """Keys and their second moment of a model's own, which are far from round."""
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(3, len(model.tokenizer), (6,), generator=generator).tolist()) for _ in range(2000)]
    stream = enter(model, [PivotRow(row, 5) for row in rows[:1000]], 1)
    with capturing(model, 1, stream.pivot) as passes:
        advance(model, stream, 1, 2)
    keys_NK = passes[0].keys_BK
    moment_KK = key_moments(model, rows[1000:], [1])[1] / 6000
    residual_NV = torch.randn(1000, 32, generator=generator, dtype=torch.float64)
    shift_KV = moment_ridge(keys_NK, residual_NV, Factor.of(moment_KK), 15000.0)
    primal_KV = torch.linalg.solve(15000.0 * moment_KK + keys_NK.T @ keys_NK, keys_NK.T @ residual_NV)
    lower_KK = torch.linalg.cholesky(moment_KK)
    white_NK = torch.linalg.solve_triangular(lower_KK, keys_NK.T, upper=False).T
    weights_NV = torch.linalg.solve(15000.0 * torch.eye(1000).double() + white_NK @ white_NK.T, residual_NV)
    dual_KV = torch.linalg.solve_triangular(lower_KK.T, white_NK.T @ weights_NV, upper=True)
    errors = [((found - primal_KV).norm() / primal_KV.norm()).item() for found in (shift_KV, dual_KV)]
    print(f"{model.spec.architecture}: 1000 edits, condition {torch.linalg.cond(moment_KK):.0e}: errors {errors}")
    assert max(errors) < 1e-11


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_how_many_requests_share_a_pass_changes_nothing(model, tmp_path, micro_batch):
    facts, start = [*requests(), *easy_requests(model)], matrices(model)
    edited = edit(model, tmp_path, facts, micro_batch=3)
    expected = matrices(model)
    edited.revert()
    edit(model, tmp_path, facts, micro_batch=micro_batch)
    error = distance(matrices(model), expected, start)
    print(f"{model.spec.architecture}: micro-batches of {micro_batch} - of 3 {error:.1e}")
    assert error < tolerance(model)


def test_a_layer_with_nothing_to_keep_maps_the_key_by_exactly_its_share(llama, tmp_path):
    """One edit, two layers, no prefixes: the first is asked for half of what is missing."""
    (fact,) = requests()[:1]
    made = rewrite(llama, fact, (), "joint")
    row = made.contexts[0]
    _, value_D, _ = watch(llama, LAYERS[0], row.ids, row.pivot)
    plain_D = plain_stream(llama, fact, LAYERS[-1])
    method = memit(**LIGHT, prefixes=[])
    stream = enter(llama, made.rows, LAYERS[-1] + 1)
    missing = optimise(llama, [made], stream, LAYERS[-1] + 1, plain_D.norm()[None], method.hparams).delta_ND[0]
    artifacts = {
        "prefixes": write_prefixes(tmp_path / "prefixes", ()),
        "moments": write_moments(tmp_path / "moments", llama, LAYERS),
    }
    method.edit(llama, [fact], artifacts, TinyContext())
    moved_D = watch(llama, LAYERS[0], row.ids, row.pivot)[1] - value_D
    torch.testing.assert_close(moved_D, missing / 2, rtol=1e-6, atol=1e-8)


def test_what_is_missing_shrinks_from_layer_to_layer(model, tmp_path):
    facts = requests()
    targets_ND = targets_of(model, facts, memit().hparams)
    edited = edit(model, tmp_path, facts, **LIGHT)
    figures = edited.diagnostics()
    end = torch.stack([plain_stream(model, fact, LAYERS[-1]) for fact in facts])
    after = (targets_ND - end).norm(dim=-1).mean().item()
    missing = [figures["missing_before_layer_0"], figures["missing_before_layer_1"], after]
    print(f"{model.spec.architecture}: missing before layer 0, before layer 1, in the end: {missing}")
    assert missing[0] > missing[1] > missing[2]


def right_answers(model, edited, facts):
    queries = [joint_query(model.tokenizer, fact.prompt, fact.target_new) for fact in facts]
    said = edited.teacher_forced(queries)
    return sum(ids == list(query.target_ids) for ids, query in zip(said, queries, strict=True))


def test_targets_become_likely(model, tmp_path):
    facts = easy_requests(model)
    edited = edit(model, tmp_path, facts, **LIGHT, **LONG)
    assert right_answers(model, edited, facts) >= 3
    assert edited.diagnostics()["value_probability"] > 0.9


def test_a_heavy_moment_changes_nothing(llama, tmp_path):
    start = matrices(llama)
    edit(llama, tmp_path, requests(), moment_weight=1e12)
    torch.testing.assert_close(matrices(llama), start, rtol=0, atol=1e-9)


def test_batches_follow_one_another_on_the_same_weights(llama, tmp_path):
    facts = requests()
    edited = edit(llama, tmp_path, facts, batch=2)
    in_one_go = matrices(llama)
    edited.revert()
    edit(llama, tmp_path, facts[:2])
    edit(llama, tmp_path, facts[2:])
    torch.testing.assert_close(matrices(llama), in_one_go, rtol=1e-10, atol=1e-12)


def test_requests_of_a_batch_share_one_change(llama, tmp_path):
    facts = requests()
    edited = edit(llama, tmp_path, facts)
    together = matrices(llama)
    edited.revert()
    edit(llama, tmp_path, facts, batch=1)
    assert not torch.allclose(matrices(llama)[1], together[1], atol=1e-3)


def test_only_the_matrices_of_the_layers_change_and_they_come_back(model, tmp_path):
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    bits = weight_hash(model.model)
    edited = edit(model, tmp_path, requests())
    changed = [name for name, parameter in model.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == [model.value_matrix(layer)[0] for layer in LAYERS]
    edited.revert()
    assert weight_hash(model.model) == bits


def test_half_precision_learns_too_and_comes_back(tmp_path):
    model = able_model("llama", torch.bfloat16)
    bits, facts = weight_hash(model.model), easy_requests(model)
    edited = edit(model, tmp_path, facts, **LIGHT, **LONG)
    assert right_answers(model, edited, facts) >= 3
    assert all(matrix.dtype == torch.float32 for matrix in matrices(model))
    edited.revert()
    assert weight_hash(model.model) == bits
    assert all(matrix.dtype == torch.bfloat16 for matrix in matrices(model))


def test_a_record_that_cannot_be_edited_is_named_and_the_model_is_as_it_was(llama, tmp_path):
    bits, facts = weight_hash(llama.model), requests()
    facts[2] = dataclasses.replace(facts[2], subject="Marie Curie")
    with pytest.raises(UserError, match=r"^record r2: .*not in its prompt"):
        edit(llama, tmp_path, facts)
    assert weight_hash(llama.model) == bits


def test_a_second_batch_that_fails_undoes_the_first(llama, tmp_path):
    bits, context = weight_hash(llama.model), SpoilingContext(llama)
    with pytest.raises(UserError, match=r"^record r\d: the loss of its value is not a number at step 0"):
        edit(llama, tmp_path, requests(), context, batch=2)
    context.restored()
    assert weight_hash(llama.model) == bits


def test_time_and_progress_are_counted(llama, tmp_path):
    context = TinyContext()
    edited = edit(llama, tmp_path, requests(), context, batch=3)
    assert context.phases == ["edit"]
    assert context.advanced == [3, 1]
    assert edited.diagnostics()["moment_tokens"] == 123


def test_prefixes_and_moments_are_needed_and_layers_are_checked():
    target, data = ModelRef("gpt-j-6b", "pretrained", sha256="x"), DataRef("zsre", "", 4, train=8, sha256="y")
    assert set(memit().artifacts(target, data, 0)) == {"prefixes", "moments"}
    with pytest.raises(UserError, match="the last edited one is 40"):
        memit(layers=[40]).artifacts(target, data, 0)
    with pytest.raises(UserError, match="edits at the subject, but there is none in 2 edits of 'zsre'"):
        memit().artifacts(target, dataclasses.replace(data, without_subject=2), 0)


def test_second_moments_are_never_the_identity():
    with pytest.raises(ValueError, match="moments"):
        memit(moments="identity")


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "olmo2"])
def test_behind_a_norm_the_stream_becomes_what_the_last_layer_was_asked_for(architecture, tmp_path, monkeypatch):
    """As read from the whole model after the edit: the target is one that the norm can give, and the solve gives it."""
    targets = []

    def recorded(*given, found=Memit._targets):
        targets.append(found(*given))
        return targets[-1]

    monkeypatch.setattr(Memit, "_targets", recorded)
    with catalogued_families():
        model = able_model(architecture)
        facts = easy_requests(model)
        before = [probability(model, fact) for fact in facts]
        artifacts = {
            "prefixes": write_prefixes(tmp_path / "prefixes", texts=(), groups=()),
            "moments": write_moments(tmp_path / "moments", model, LAYERS),
        }
        method = memit(layers=LAYERS[-1:], prefixes=(), **LIGHT)
        edited = method.edit(model, facts, artifacts, TinyContext())
        ((wanted_ND, _),) = targets
        rows = [rewrite(model, fact, (), "joint").contexts[0] for fact in facts]
        found_ND = torch.stack([watch(model, LAYERS[-1], row.ids, row.pivot)[2] for row in rows])
        after = [probability(model, fact) for fact in facts]
        edited.revert()
    assert edited.diagnostics()["missing_before_layer_1"] > 0.1
    torch.testing.assert_close(found_ND, wanted_ND.to(found_ND), rtol=1e-3, atol=1e-3)
    assert sum(map(math.log, after)) > sum(map(math.log, before))


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "olmo2"])
def test_behind_a_norm_every_layer_brings_the_stream_nearer_to_its_target(architecture, tmp_path):
    with catalogued_families():
        model = able_model(architecture)
        edited = edit(model, tmp_path, easy_requests(model), **LIGHT)
        figures = edited.diagnostics()
        edited.revert()
    assert figures["missing_before_layer_1"] < figures["missing_before_layer_0"]


def change_of(model, folder, **changes):
    """What one edit adds to the matrix of the first layer, V × K."""
    start = matrices(model)[0]
    edited = edit(model, folder, easy_requests(model), **changes)
    made = matrices(model)[0] - start
    edited.revert()
    return made, start


def test_rect_applies_the_entries_that_change_weights_most_and_drops_the_others(llama, tmp_path):
    whole_VK, weight_VK = change_of(llama, tmp_path, **LIGHT)
    kept_VK, _ = change_of(llama, tmp_path, **LIGHT, keep_largest=0.4)
    relative = sorted(((whole_VK / weight_VK).abs()).flatten().tolist())
    bound = relative[len(relative) - round(0.4 * len(relative))]
    for whole, weight, kept in zip(whole_VK.flatten(), weight_VK.flatten(), kept_VK.flatten(), strict=True):
        assert abs(kept - (whole if abs(whole / weight) >= bound else 0)) < 1e-12


def test_prune_reduces_the_singular_values_above_the_largest_one_of_the_matrix(llama, tmp_path):
    llama.value_matrix(0)[1].mul_(0.2)  # so that the change exceeds it
    whole_VK, weight_VK = change_of(llama, tmp_path, **LIGHT)
    pruned_VK, _ = change_of(llama, tmp_path, **LIGHT, restrain=True)
    most = torch.linalg.svdvals(weight_VK)[0]
    before, after = torch.linalg.svdvals(whole_VK), torch.linalg.svdvals(pruned_VK)
    assert before[0] > most > before[-1]
    expected = [value if value <= most else most + math.log(value / most) for value in before.tolist()]
    torch.testing.assert_close(after, torch.tensor(expected, dtype=after.dtype), rtol=1e-9, atol=1e-9)


def test_a_weighted_norm_is_the_primal_solution_with_a_diagonal(llama, tmp_path):
    fast_VK, _ = change_of(llama, tmp_path, norm_weight=3.0)
    assert fast_VK.norm() < change_of(llama, tmp_path)[0].norm()
    facts, start = easy_requests(llama), matrices(llama)

    def update(layer, keys_KN, residual_DN):
        system_KK = 2.0 * read_moment(tmp_path / "moments", layer) + keys_KN @ keys_KN.T
        return residual_DN @ keys_KN.T @ torch.linalg.inv(system_KK + 3.0 * torch.eye(len(system_KK)))

    slow_layers(llama, facts, memit().hparams, update)
    assert ((matrices(llama)[0] - start[0] - fast_VK).norm() / fast_VK.norm()).item() < 1e-9


def test_a_regulariser_that_is_off_is_not_part_of_a_cells_identity():
    plain, regularised = memit().hparams, memit(keep_largest=0.4, norm_weight=1.0).hparams
    assert set(regularised.identity()) - set(plain.identity()) == {"keep_largest", "norm_weight"}
    assert memit(restrain=True).hparams.identity()["restrain"] is True
