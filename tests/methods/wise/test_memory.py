"""WISE's memories: activation, routing, TIES, and which memories there are in the end."""

from dataclasses import replace

import pytest
import torch

from harness.models.edited import WeightEditedModel
from harness.models.routed import RoutedModel
from harness.models.weights import Snapshot
from methods.wise import merging
from methods.wise.memory import FaithfulMemories, SideMemories, SideMemory, activation_of, memory_of, scores
from methods.wise.merging import assembled, merged, settled, ties
from methods.wise.training import Shards
from tests.helpers.tiny_edits import FACTS, UNRELATED, queries_of, three_layers
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_wise import LAYER, hparams_with

B, T, K, D = 3, 4, 5, 6


@pytest.fixture
def batch():
    """Inputs, outputs, and tokens that may be read: not all, and not the same number everywhere."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(B, T, K, generator=generator, dtype=torch.float64)
    outputs = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    read = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    return inputs, outputs, read


def change(seed=0, scale=1.0):
    return scale * torch.randn(D, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memories(*sides, act_ratio=1.0):
    return SideMemories(torch.tanh, [SideMemory(*side) for side in sides], act_ratio)


def test_a_score_is_the_mean_distance_of_activations_over_the_tokens_that_are_read(batch):
    inputs, outputs, read = batch
    added = inputs @ change().mT
    found = scores(torch.tanh, outputs, added, read)
    for row in range(B):
        gaps = [
            (torch.tanh(outputs[row, t]) - torch.tanh(outputs[row, t] + change() @ inputs[row, t])).norm().item()
            for t in range(T)
            if read[row, t]
        ]
        assert found[row].item() == pytest.approx(sum(gaps) / len(gaps), rel=1e-12)


def test_what_is_no_number_in_padding_reaches_no_score(batch):
    inputs, outputs, read = batch
    expected = scores(torch.tanh, outputs, inputs @ change().mT, read)
    outputs[1, 0] = torch.nan
    assert torch.equal(scores(torch.tanh, outputs, inputs @ change().mT, read), expected)


def test_below_its_threshold_a_memory_is_silent_bit_for_bit(batch):
    inputs, outputs, read = batch
    lowest, middle, highest = scores(torch.tanh, outputs, inputs @ change().mT, read).sort().values.tolist()
    memory = memories((change(), middle), act_ratio=1.0 + 1e-9)
    route = memory.route(*batch)
    assert sorted(route.tolist()) == [-1, -1, 0]
    answer = memory.answer(*batch, route)
    for row in range(B):
        if route[row] < 0:
            assert torch.equal(answer[row], outputs[row])
        else:
            torch.testing.assert_close(answer[row], outputs[row] + inputs[row] @ change().T)
    assert memory.scope(route).tolist() == [float(number >= 0) for number in route]
    assert lowest < middle < highest


def test_the_threshold_is_a_share_of_the_smallest_activation_of_the_edits(batch):
    inputs, outputs, read = batch
    score = scores(torch.tanh, outputs, inputs @ change().mT, read)[0].item()
    for share, expected in ((0.5, 0), (2.0, -1)):
        routes = memories((change(), score / share), act_ratio=share * 0.999).route(*batch)
        assert routes[0].item() == 0, share
        routes = memories((change(), score / share), act_ratio=share * 1.001).route(*batch)
        assert routes[0].item() == -1, (share, expected)


def test_of_those_above_their_thresholds_the_most_active_answers(batch):
    quiet, loud = (change(1, 0.1), 0.0), (change(2, 1.0), 0.0)
    assert memories(quiet, loud).route(*batch).tolist() == [1, 1, 1]
    assert memories(loud, quiet).route(*batch).tolist() == [0, 0, 0]
    assert memories((loud[0], 1e9), quiet).route(*batch).tolist() == [1, 1, 1], "a loud one below its threshold is out"
    assert memories().route(*batch).tolist() == [-1, -1, -1]


def test_in_easyedit_a_memory_must_be_more_active_than_the_one_in_training_even_where_that_is_silent(batch):
    """The last side is the one that would be trained next."""
    quiet, loud = (change(1, 0.1), 0.0), (change(2, 1.0), 1e9)

    def route(kind):
        return kind(torch.tanh, [SideMemory(*quiet), SideMemory(*loud)], 1.0).route(*batch).tolist()

    assert route(SideMemories) == [0, 0, 0]
    assert route(FaithfulMemories) == [-1, -1, -1]
    assert FaithfulMemories(torch.tanh, [SideMemory(*loud), SideMemory(*quiet)], 1.0).route(*batch).tolist() == [
        1,
        1,
        1,
    ]
    assert FaithfulMemories(torch.tanh, [SideMemory(loud[0], 0.0), SideMemory(*quiet)], 1.0).route(*batch).tolist() == [
        0,
        0,
        0,
    ]


def test_in_easyedit_the_most_active_token_of_a_long_text_decides():
    """101 tokens of which one is active: above the threshold by itself, far below it in the mean."""
    inputs = torch.zeros(2, 101, K, dtype=torch.float64)
    inputs[:, 0] = 5.0
    outputs, read = torch.zeros(2, 101, D, dtype=torch.float64), torch.ones(2, 101, dtype=torch.bool)
    read[1, 100] = False
    score = (torch.tanh(change() @ inputs[0, 0])).norm().item()
    side = SideMemory(change(), 0.9 * score)
    assert FaithfulMemories(torch.tanh, [side], 1.0).route(inputs, outputs, read).tolist() == [0, -1]
    assert SideMemories(torch.tanh, [side], 1.0).route(inputs, outputs, read).tolist() == [-1, -1]


@pytest.mark.parametrize("implementation", ["corrected", "faithful-easyedit"])
def test_in_easyedit_a_side_memory_has_no_bias(implementation):
    """GPT-J's matrix has one; the other architectures cannot tell."""
    model = three_layers("gptj")
    linear = model.module(model.layout.value_matrix, LAYER)
    with torch.no_grad():
        linear.bias.fill_(1.0)
    side = SideMemory(torch.zeros_like(linear.weight), 0.0)
    hparams = hparams_with(implementation=implementation, parallel=1, save_freq=2, merge_freq=4, act_ratio=1e-9)
    memory = memory_of(model, [side], 1, hparams)
    inputs = torch.randn(1, 3, linear.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs, read = linear(inputs).detach(), torch.ones(1, 3, dtype=torch.bool)
    answer = memory.answer(inputs, outputs, read, torch.tensor([0]))
    torch.testing.assert_close(answer, outputs - float(implementation == "faithful-easyedit"))


def test_in_easyedit_there_is_always_a_side_memory_in_training():
    model = three_layers("llama")
    side = SideMemory(torch.zeros_like(model.value_matrix(LAYER)[1]), 0.0)
    kinds = {
        edits: memory_of(model, [side], edits, hparams_with(implementation="faithful-easyedit", parallel=1))
        for edits in (1, 2)
    }
    assert [len(memory._sides) for memory in kinds.values()] == [1, 2]
    assert kinds[2]._sides[-1].threshold == torch.inf
    assert not kinds[2]._sides[-1].change_DK.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_routed_model_is_the_model_with_the_side_memory_in_place_of_its_matrix(architecture):
    model = three_layers(architecture)
    queries = queries_of(model, FACTS + UNRELATED)
    name, weight = model.value_matrix(LAYER)
    side = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = WeightEditedModel(model)
    before = plain.teacher_forced(queries), plain.generate(queries)
    snapshot = Snapshot(model.model, [name])
    with torch.no_grad():
        weight.add_(side)
    expected = plain.teacher_forced(queries), plain.generate(queries)
    snapshot.restore()
    assert expected != before

    def routed(threshold):
        memory = SideMemories(activation_of(model, LAYER), [SideMemory(side, threshold)], 0.88)
        return RoutedModel(model, LAYER, memory)

    always, never = routed(0.0), routed(float("inf"))
    assert (always.teacher_forced(queries), always.generate(queries)) == expected
    assert (never.teacher_forced(queries), never.generate(queries)) == before
    assert set(always.scope(queries)) == {1.0}
    assert set(never.scope(queries)) == {0.0}


def test_the_activation_is_that_of_the_architecture():
    values = torch.linspace(-3, 3, 7)
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    assert torch.allclose(activation_of(three_layers("llama"), LAYER)(values), silu(values))
    assert torch.allclose(activation_of(three_layers("gptj"), LAYER)(values), gelu(values, approximate="tanh"))


def test_ties_trims_elects_and_averages():
    """Half of the entries stay: 4, -3 of the first, -5, 2 of the second; the first place is contested, -5 wins."""
    first = torch.tensor([[4.0, 1.0], [-3.0, 0.5]])
    second = torch.tensor([[-5.0, 1.0], [0.5, 2.0]])
    assert ties([first, second], [0.5, 0.5], 0.5).tolist() == [[-5.0, 0.0], [-3.0, 2.0]]


def test_ties_averages_by_weight_what_agrees_and_elects_plus_where_nobody_wins():
    first, second = torch.tensor([[4.0, 1.0]]), torch.tensor([[2.0, -1.0]])
    assert ties([first, second], [0.5, 0.5], 1.0).tolist() == [[3.0, 1.0]]
    merged = ties([first, second], [0.6, 0.4], 1.0)
    torch.testing.assert_close(merged, torch.tensor([[(0.6 * 4 + 0.4 * 2), 1.0]]))
    heavy = ties([first, second], [0.2, 0.8], 1.0)
    torch.testing.assert_close(heavy, torch.tensor([[0.2 * 4 + 0.8 * 2, -1.0]]))


def test_ties_may_be_cut_at_its_share_among_equal_entries():
    change = torch.tensor([[2.0, 1.0, 1.0, 1.0]])
    assert int((ties([change], [1.0], 0.5) != 0).sum()) == 4
    cut = ties([change], [1.0], 0.5, is_cut=True)
    assert int((cut != 0).sum()) == 2
    assert cut[0, 0] == 2
    distinct = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ties([distinct], [1.0], 0.53, is_cut=True), ties([distinct], [1.0], 0.53))


def test_ties_keeps_the_share_of_each_change_that_it_is_told_to():
    one = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    kept = ties([one], [1.0], 0.53)
    assert int((kept != 0).sum()) == 530
    assert torch.equal(kept[kept != 0], one[kept != 0])
    assert kept[kept != 0].abs().min() > one[kept == 0].abs().max()
    assert torch.equal(ties([torch.zeros(3, 3)], [1.0], 0.5), torch.zeros(3, 3))


def shards_of(sides, edits):
    return Shards(tuple(sides), 0.0, 0.0, edits, torch.empty(0), torch.empty(0))


def assembled_of(sides, edits, hparams):
    return assembled(settled(shards_of(sides, edits), hparams), hparams)


def assembled_anew(sides, edits, hparams):
    """All groups merged again from all shards."""
    finished, size = edits // hparams.save_freq, hparams.merge_freq // hparams.save_freq
    groups = [sides[start : min(start + size, finished)] for start in range(0, finished, size)]
    if hparams.memory == "retrieve":
        kept = [[merged(group, hparams)] if len(group) == size else group for group in groups]
        return [side for sides in kept for side in sides] + sides[finished:]
    main = []
    for group in groups:
        main = [merged(group, hparams, *main)]
    return main + sides[finished:]


@pytest.mark.parametrize("memory", ["retrieve", "merge"])
@pytest.mark.parametrize("block", [1, 3, 5, 20])
def test_what_is_merged_is_merged_once_and_for_all(memory, block, monkeypatch):
    """Two edits per shard and three shards per group, in blocks that end anywhere, with the state in between."""
    hparams = hparams_with(save_freq=2, merge_freq=6, memory=memory)
    sides, counted = [SideMemory(change(number), 10.0 - number) for number in range(10)], []
    monkeypatch.setattr(merging, "merged", lambda group, *rest: counted.append(len(group)) or merged(group, *rest))
    shards = shards_of([], 0)
    for edits in range(block, 21, block):
        begun, waiting = sides[: -(-edits // 2)], sides[shards.edits // 6 * 3 : -(-edits // 2)]
        shards = Shards.of(settled(replace(shards, sides=tuple(waiting), edits=edits), hparams).state())
        found, expected = assembled(shards, hparams), assembled_anew(begun, edits, hparams)
        assert thresholds(found) == thresholds(expected)
        assert all(torch.equal(one.change_DK, other.change_DK) for one, other in zip(found, expected, strict=True))
        assert len(shards.sides) == len(begun) - edits // 6 * 3
    exported = {
        name: value for name, value in shards_of(sides[: len(begun)], edits).state().items() if name != "merged"
    }
    whole = assembled(settled(Shards.of(exported), hparams), hparams)
    assert thresholds(whole) == thresholds(found), "a state of all shards is merged too"
    assert max(counted) <= 3
    assert memory == "merge" or len(counted) == 2 * (20 // 6)


def sides_of(count):
    return [SideMemory(torch.full((1, 1), float(10**number)), 10.0 - number) for number in range(count)]


def thresholds(sides):
    return [side.threshold for side in sides]


def test_shards_are_merged_in_groups_and_others_stand_beside_them():
    """Two edits per shard, three shards per merge, eleven edits: one memory, two finished shards, one that is not."""
    found = assembled_of(sides_of(6), 11, hparams_with(save_freq=2, merge_freq=6))
    assert thresholds(found) == [8.0, 7.0, 6.0, 5.0]
    assert [side.change_DK.item() for side in found] == pytest.approx([37.0, 1_000.0, 10_000.0, 100_000.0])
    assert thresholds(assembled_of(sides_of(1), 1, hparams_with())) == [10.0], "one unfinished shard is what it is"


def test_shards_that_wait_for_a_merge_are_not_trimmed():
    waiting = SideMemory(torch.arange(1.0, 9.0).reshape(2, 4), 1.0)
    (found,) = assembled_of([waiting], 2, hparams_with(save_freq=2, merge_freq=4))
    assert torch.equal(found.change_DK, waiting.change_DK)


def test_merging_everything_lets_the_earlier_memory_count_for_more():
    hparams = hparams_with(save_freq=2, merge_freq=4, memory="merge")
    found = assembled_of(sides_of(6), 11, hparams)
    assert thresholds(found) == [6.0, 5.0]
    assert found[0].change_DK.item() == pytest.approx(0.6 * (0.6 * 5.5 + 0.2 * 100 + 0.2 * 1000) + 0.4 * 10_000)
    assert found[1].change_DK.item() == 100_000.0
