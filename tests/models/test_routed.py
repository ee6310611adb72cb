from dataclasses import replace

import pytest
import torch

from harness.models.edited import WeightEditedModel
from harness.models.routed import RoutedModel, last_of, matrix, output_replaced
from harness.models.weights import weight_hash
from harness.tokens import joint_query
from tests.helpers.tiny_edits import read_by_head
from tests.helpers.tiny_models import ARCHITECTURES, QUESTIONS, tiny_model

LAYER = 0


class Scorer:
    """Takes a row if the mean over the tokens that it may read, projected on a direction, lies above a threshold.

    It then gives `shift` more than the matrix, at all tokens or at the last one that was read.
    """

    def __init__(self, model, threshold, everywhere):
        generator = torch.Generator().manual_seed(5)
        width_in, width_out = matrix(model, LAYER).in_features, matrix(model, LAYER).out_features
        self.direction_K = torch.randn(width_in, generator=generator)
        self.shift_D = 3 * torch.randn(width_out, generator=generator)
        self.threshold, self.everywhere = threshold, everywhere
        self.read = []

    def route(self, inputs_BTK, outputs_BTD, read_BT):
        self.read.append(read_BT.sum(1).tolist())
        score_BT = (inputs_BTK @ self.direction_K) * read_BT
        return score_BT.sum(1) / read_BT.sum(1)

    def answer(self, inputs_BTK, outputs_BTD, read_BT, route):
        places_BT = torch.ones_like(read_BT) if self.everywhere else read_BT.clone()
        if not self.everywhere:
            places_BT &= torch.arange(read_BT.shape[1]) == last_of(read_BT)[:, None]
        places_BT &= (route > self.threshold)[:, None]
        return torch.where(places_BT[..., None], outputs_BTD + self.shift_D, outputs_BTD)

    def scope(self, route):
        return (route > self.threshold).double()


@torch.no_grad()
def slow_logits(model, memory, ids, n_prompt):
    """All logits of one sequence whose routing reads the prompt alone: no batch, no padding, no cache."""
    caught = []
    with output_replaced(matrix(model, LAYER), lambda x, y: (caught.append(x), y)[1]):
        model.model(input_ids=torch.tensor([ids[:n_prompt]]))
    is_taken = bool((caught[0][0] @ memory.direction_K).mean() > memory.threshold)

    def answer(_, outputs_BTD):
        changed = outputs_BTD.clone()
        places = slice(None) if memory.everywhere else n_prompt - 1
        changed[0, places] += memory.shift_D
        return changed if is_taken else outputs_BTD

    with output_replaced(matrix(model, LAYER), answer):
        return model.model(input_ids=torch.tensor([ids])).logits[0]


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def queries(model):
    return [joint_query(model.tokenizer, prompt, target) for prompt, target in QUESTIONS]


@pytest.fixture(params=["everywhere", "last"])
def memory(request, model, queries):
    """Takes half of the questions, with a margin on both sides."""
    scorer = Scorer(model, 0.0, request.param == "everywhere")
    scores = []
    scorer.scope = lambda route: scores.append(route) or route
    RoutedModel(model, LAYER, scorer).scope(queries)
    del scorer.scope
    low, high = scores[0].sort().values[len(queries) // 2 - 1 :][:2].tolist()
    assert high - low > 1e-3
    scorer.threshold = (low + high) / 2
    scorer.read.clear()
    return scorer


def test_teacher_forcing_in_a_batch_equals_one_question_at_a_time(model, queries, memory):
    slow = []
    for query in queries:
        logits = slow_logits(model, memory, query.prompt_ids + query.target_ids, len(query.prompt_ids))
        slow.append(logits[len(query.prompt_ids) - 1 : -1].argmax(-1).tolist())
    assert RoutedModel(model, LAYER, memory).teacher_forced(queries) == slow
    assert slow != WeightEditedModel(model).teacher_forced(queries)


def test_generation_with_a_cache_equals_one_question_at_a_time_without(model, queries, memory):
    slow = []
    for query in queries:
        ids = list(query.prompt_ids)
        for _ in query.target_ids:
            ids.append(int(slow_logits(model, memory, ids, len(query.prompt_ids))[-1].argmax()))
        slow.append(ids[len(query.prompt_ids) :])
    assert RoutedModel(model, LAYER, memory).generate(queries) == slow
    assert slow != WeightEditedModel(model).generate(queries)


def test_generation_that_reads_everything_reads_the_text_anew_for_each_id(model, queries, memory):
    slow = []
    for query in queries:
        ids = list(query.prompt_ids)
        for _ in query.target_ids:
            ids.append(int(slow_logits(model, memory, ids, len(ids))[-1].argmax()))
        slow.append(ids[len(query.prompt_ids) :])
    assert RoutedModel(model, LAYER, memory, "sequence").generate(queries) == slow


def test_a_batch_of_one_equals_the_same_question_among_others(model, queries, memory):
    routed = RoutedModel(model, LAYER, memory)
    assert [routed.teacher_forced([query])[0] for query in queries] == routed.teacher_forced(queries)
    assert [routed.generate([query])[0] for query in queries] == routed.generate(queries)
    assert [routed.scope([query])[0] for query in queries] == routed.scope(queries)


def test_scope_is_one_where_the_memory_answers(model, queries, memory):
    scopes = RoutedModel(model, LAYER, memory).scope(queries)
    assert sorted(scopes) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    plain, routed = WeightEditedModel(model).generate(queries), RoutedModel(model, LAYER, memory).generate(queries)
    assert all(one == other for one, other, scope in zip(plain, routed, scopes, strict=True) if not scope)


def test_scope_runs_no_block_above_the_memory(model, queries, memory):
    runs = []
    handle = model.block(LAYER + 1).register_forward_pre_hook(lambda *_: runs.append(1))
    RoutedModel(model, LAYER, memory).scope(queries)
    handle.remove()
    assert not runs


def test_rows_that_are_not_routed_have_the_models_own_bits(model, queries, memory):
    answering = WeightEditedModel(model), RoutedModel(model, LAYER, memory)
    plain, routed = (read_by_head(model, each, queries) for each in answering)
    scopes = RoutedModel(model, LAYER, memory).scope(queries)
    assert [torch.equal(*pair) for pair in zip(plain, routed, strict=True)] == [scope == 0 for scope in scopes]


@pytest.mark.parametrize("reads", ["prompt", "sequence", "step"])
def test_a_decision_reads_what_it_may_and_no_more(reads, model, queries, memory):
    prompts = [len(query.prompt_ids) for query in queries]
    targets = [len(query.target_ids) for query in queries]
    routed = RoutedModel(model, LAYER, memory, reads)
    routed.teacher_forced(queries)
    wholes = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    assert memory.read == [prompts if reads == "prompt" else wholes]
    memory.read.clear()
    routed.generate(queries)
    later = {
        "prompt": [],
        "sequence": [
            [prompt + step for prompt, target in zip(prompts, targets, strict=True) if step < target]
            for step in range(1, max(targets))
        ],
        "step": [[1] * len(queries)] * (max(targets) - 1),
    }
    assert memory.read == [prompts, *later[reads]]
    memory.read.clear()
    routed.scope(queries)
    assert memory.read == [prompts]


def test_a_text_that_fills_the_context_is_scored(model, queries, memory):
    """The model reads all of its ids but the last one, and so does the decision."""
    start = queries[0].prompt_ids
    ids = (start * model.positions)[: model.positions + 1]
    full = replace(queries[0], target_ids=ids[len(start) :])
    (scores, others) = RoutedModel(model, LAYER, memory).score([full, queries[1]], reads_targets=True)
    assert memory.read == [[model.positions, len(queries[1].prompt_ids + queries[1].target_ids)]]
    assert [len(scores), len(others)] == [len(full.target_ids), len(queries[1].target_ids)]
    memory.threshold = float("inf")
    (plain,) = WeightEditedModel(model).score([full])
    (same,) = RoutedModel(model, LAYER, memory).score([full], reads_targets=True)
    assert [score.best for score in same] == [score.best for score in plain]


@pytest.mark.parametrize("reads", ["sequence", "step"])
def test_the_answers_have_as_many_ids_as_their_targets_whatever_is_read(reads, model, queries, memory):
    routed = RoutedModel(model, LAYER, memory, reads)
    for answers in (routed.teacher_forced(queries), routed.generate(queries)):
        assert [len(ids) for ids in answers] == [len(query.target_ids) for query in queries]


def test_weights_and_hooks_are_as_before_also_after_an_exception(model, queries, memory):
    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
        return weight_hash(model.model), hooks

    before = state()
    routed = RoutedModel(model, LAYER, memory)
    routed.generate(queries)
    assert state() == before

    def fail(*_):
        raise RuntimeError("the memory fails")

    memory.route = fail
    for ask in (routed.teacher_forced, routed.generate, routed.scope):
        with pytest.raises(RuntimeError, match="the memory fails"):
            ask(queries)
        assert state() == before
    routed.revert()
    assert state() == before


def test_a_layer_may_count_from_the_last(model, queries, memory):
    assert RoutedModel(model, LAYER - 2, memory).scope(queries) == RoutedModel(model, LAYER, memory).scope(queries)


def test_no_question_has_no_answer(model, memory):
    routed = RoutedModel(model, LAYER, memory)
    assert (routed.teacher_forced([]), routed.generate([]), routed.scope([])) == ([], [], [])
