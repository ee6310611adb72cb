"""AlphaEdit: equal to the published formula in a loop, in the null space alone, and mindful of the keys of earlier edits."""

import math

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.weights import weight_hash
from harness.records import DataRef
from methods.alphaedit import AlphaEdit, AlphaEditHparams
from methods.alphaedit.editor import ROLE
from methods.alphaedit.null_space import NullSpace, Protecting
from methods.common import moments
from methods.common.solves import ridge
from tests.helpers.tiny_models import rounding
from tests.helpers.tiny_rome import (
    MOMENTS,
    VALUE,
    TinyContext,
    easy_requests,
    random_moment,
    requests,
    slow_keys,
    slow_layers,
    write_anchor,
    write_prefixes,
)

LAYERS = (0, 1)
THRESHOLD = 0.6
"""Leaves about half of the directions of the random covariances."""
L2 = 0.1


def alphaedit(**changes):
    more = {"layers": LAYERS, "null_threshold": THRESHOLD, "norm_weight": L2, "batch": 4, "micro_batch": 3}
    return AlphaEdit(AlphaEditHparams(**VALUE | MOMENTS | more | changes))


def moment(model, layer):
    return random_moment(model.value_matrix(layer)[1].shape[1], layer)


def artifacts(model, folder):
    (folder / ROLE).mkdir(exist_ok=True)
    for layer in LAYERS:  # in float64: the published formula and its symmetric form agree as far as P² = P
        space = NullSpace.of(moment(model, layer), THRESHOLD)
        name = "complement" if space.is_complement else "basis"
        save_file({name: space.basis_DK.contiguous()}, folder / ROLE / moments.file_name(layer))
    return {"prefixes": write_prefixes(folder / "prefixes"), ROLE: folder / ROLE}


def matrices(model):
    return [model.value_matrix(layer)[1].detach().clone() for layer in LAYERS]


def projection(model, layer):
    """P as published: U Uᵀ over the eigenvectors of C whose eigenvalues are below the threshold."""
    values, vectors = torch.linalg.eigh(moment(model, layer))
    chosen = vectors[:, values < THRESHOLD]
    return chosen @ chosen.T


def largest(shift_DK, weight_DK, share):
    """RECT: entry after entry, those that change a weight most relative to its size."""
    relative = sorted((shift_DK / weight_DK).abs().flatten().tolist(), reverse=True)
    bound = relative[round(share * len(relative)) - 1]
    pairs = zip(shift_DK.flatten().tolist(), weight_DK.flatten().tolist(), strict=True)
    kept = [shift if abs(shift / weight) >= bound else 0.0 for shift, weight in pairs]
    return torch.tensor(kept, dtype=shift_DK.dtype).view_as(shift_DK)


def slow_edit(model, facts, batch, norm=None, keep=None):
    """The published code's formula in float64, its unsymmetric system included, batch after batch.

    `norm` is that of the values, `keep` the share of an update's entries that are applied.
    """
    earlier = dict.fromkeys(LAYERS, 0.0)
    for start in range(0, len(facts), batch):
        call = facts[start : start + batch]

        def update(layer, keys_KN, residual_DN):
            p_KK = projection(model, layer)
            system_KK = p_KK @ (keys_KN @ keys_KN.T + earlier[layer]) + L2 * torch.eye(len(p_KK), dtype=p_KK.dtype)
            shift_DK = torch.linalg.solve(system_KK, p_KK @ keys_KN @ residual_DN.T).T
            return shift_DK if keep is None else largest(shift_DK, model.value_matrix(layer)[1], keep)

        slow_layers(model, call, alphaedit().hparams, update, norm)
        for layer in LAYERS:
            keys_KN = slow_keys(model, call, layer)
            earlier[layer] = earlier[layer] + keys_KN @ keys_KN.T


@pytest.mark.parametrize(
    ("changes", "slow_changes"),
    [({}, {}), ({"norm_anchor": 3, "keep_largest": 0.4}, {"norm": 1.3, "keep": 0.4})],
    ids=["alphaedit", "anchored-rect"],
)
def test_an_edit_is_the_published_formula_in_a_loop(model, tmp_path, changes, slow_changes):
    facts, start = [*requests(), *easy_requests(model)], matrices(model)
    given = artifacts(model, tmp_path)
    if "norm" in slow_changes:
        given["anchor"] = write_anchor(tmp_path / "anchor", {LAYERS[-1]: slow_changes["norm"]})
    edited = alphaedit(**changes).edit(model, facts, given, TinyContext())
    fast = matrices(model)
    edited.revert()
    slow_edit(model, facts, 4, **slow_changes)
    slow = matrices(model)
    changed = sum((new - old).norm() for new, old in zip(slow, start, strict=True))
    error = (sum((a - b).norm() for a, b in zip(fast, slow, strict=True)) / changed).item()
    print(f"{model.spec.architecture}: AlphaEdit - loop {error:.1e}")
    assert changed > 1e-2
    assert error < rounding(model.spec.architecture, 1e-9)


def test_a_sequence_of_blocks_is_one_edit_with_batches(llama, tmp_path):
    facts, folders = [*requests(), *easy_requests(llama)], artifacts(llama, tmp_path)
    whole = alphaedit().edit(llama, facts, folders, TinyContext())
    expected, kept = matrices(llama), whole.state()
    whole.revert()
    bits = weight_hash(llama.model)
    first = alphaedit().edit(llama, facts[:4], folders, TinyContext())
    second = alphaedit().extend(llama, first.state(), facts[4:], folders, TinyContext())
    torch.testing.assert_close(matrices(llama), expected, rtol=0, atol=0)
    assert second.state().keys() == kept.keys() == {"keys.0", "keys.1"}
    assert len(kept["keys.0"]) == len(facts)
    first.revert()
    assert weight_hash(llama.model) == bits


@pytest.mark.parametrize(
    ("changes", "is_inside"), [({}, True), ({"restrain": True}, True), ({"keep_largest": 0.4}, False)]
)
def test_what_is_written_is_in_the_null_space_except_with_rect_and_its_rank_is_told(
    llama, tmp_path, changes, is_inside
):
    for layer in LAYERS:
        llama.value_matrix(layer)[1].mul_(0.2)  # so that singular values of the change exceed it
    start = matrices(llama)
    edited = alphaedit(**changes).edit(llama, requests(), artifacts(llama, tmp_path), TinyContext())
    for layer, old, new in zip(LAYERS, start, matrices(llama), strict=True):
        values, vectors = torch.linalg.eigh(moment(llama, layer))
        kept = vectors[:, values >= THRESHOLD]
        assert edited.diagnostics()[f"null_space_rank_{layer}"] == (values < THRESHOLD).sum()
        outside = ((new - old) @ kept).norm() / (new - old).norm()
        assert outside < 1e-6 if is_inside else outside > 0.1


def test_prune_reduces_the_singular_values_of_the_change_that_all_batches_make(llama, tmp_path):
    facts, given = [*requests(), *easy_requests(llama)], artifacts(llama, tmp_path)
    for layer in LAYERS:
        llama.value_matrix(layer)[1].mul_(0.2)
    start, changes = matrices(llama), []
    for options in ({}, {"restrain": True}):
        edited = alphaedit(**options).edit(llama, facts, given, TinyContext())
        changes.append([new - old for new, old in zip(matrices(llama), start, strict=True)])
        edited.revert()
    for whole, pruned, old in zip(*changes, start, strict=True):
        most = torch.linalg.svdvals(old)[0].item()
        before, after = torch.linalg.svdvals(whole), torch.linalg.svdvals(pruned)
        assert before[0] > most
        expected = [value if value <= most else most + math.log(value / most) for value in before.tolist()]
        torch.testing.assert_close(after, torch.tensor(expected, dtype=after.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.5])
def test_a_null_space_projects_alike_by_either_basis(threshold):
    values, vectors = torch.linalg.eigh(random_moment(40))
    chosen = vectors[:, values < threshold]
    space, rows = NullSpace.of(random_moment(40), threshold), torch.randn(5, 40, dtype=torch.float64)
    torch.testing.assert_close(space.project(rows), rows @ chosen @ chosen.T)
    assert space.rank == chosen.shape[1]
    assert len(space.basis_DK) <= 20


def test_more_earlier_keys_than_entries_are_replaced_by_rows_with_the_same_effect():
    space = NullSpace.of(random_moment(40), 1.0)
    generator = torch.Generator().manual_seed(1)
    earlier, keys, wanted = (torch.randn(n, 40, generator=generator, dtype=torch.float64) for n in (100, 5, 5))
    rule = Protecting({0: space}, L2, {})
    for start in range(0, 100, 10):
        rule.written(0, earlier[start : start + 10])
    assert len(rule.state()["keys.0"]) == 40
    rows, none = space.project(torch.cat([earlier, keys])), torch.zeros(100, 40, dtype=torch.float64)
    torch.testing.assert_close(rule.shift(0, keys, wanted), ridge(rows, torch.cat([none, wanted]), L2))
    again = Protecting({0: space}, L2, rule.state())
    assert torch.equal(again.shift(0, keys, wanted), rule.shift(0, keys, wanted))


@pytest.mark.parametrize("threshold", [0.3, 1.5])
def test_a_null_space_is_read_back(threshold, tmp_path):
    space, rows = NullSpace.of(random_moment(40), threshold), torch.randn(5, 40, dtype=torch.float64)
    space.save(tmp_path, 3)
    again = NullSpace.load(tmp_path, 3, torch.device("cpu"))
    assert again.rank == space.rank
    torch.testing.assert_close(again.project(rows), space.project(rows), rtol=1e-5, atol=1e-6)


def test_keys_without_a_null_space_are_refused_with_a_threshold_that_leaves_half_of_it():
    with pytest.raises(UserError, match=r"no direction of the keys has a mean square below 1e-05") as caught:
        NullSpace.of(random_moment(40), 1e-5)
    threshold = float(caught.value.fix.removeprefix("null_threshold: "))
    assert 15 < NullSpace.of(random_moment(40), threshold).rank < 25


def test_the_null_space_is_built_from_the_statistics_that_memit_uses():
    target, data = ModelRef("gpt-j-6b", "pretrained", sha256="x"), DataRef("zsre", "", 4, train=8, sha256="y")
    needed = alphaedit().artifacts(target, data, 0)
    assert set(needed) == {"prefixes", ROLE}
    assert needed[ROLE].needs["moments"].name == "second-moments"
    assert needed[ROLE].key != alphaedit(null_threshold=0.5).artifacts(target, data, 0)[ROLE].key
