import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.models.routed import matrix, output_replaced
from harness.models.weights import weight_hash
from methods.defer import Defer, DeferHparams
from methods.defer.gate import Gate
from tests.helpers.tiny_edits import FACTS, UNRELATED, Context, queries_of, read_by_head, requests_of, three_layers
from tests.helpers.tiny_models import ARCHITECTURES, rounding

HPARAMS = {"layer": 1, "query": "prompt_last", "threshold": 0.5, "lr": 1e-2, "steps": 5}


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return three_layers(request.param)


def edit(model, facts=FACTS, **choices):
    return Defer(DeferHparams(**{**HPARAMS, **choices})).edit(model, requests_of(facts), {}, Context)


def has_bits(state, other):
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state
    )


def half_open(model, facts):
    """An edit whose threshold lies between the gates of half of these prompts and those of the others."""
    gates = sorted(edit(model, FACTS).scope(queries_of(model, facts)))
    low, high = gates[len(gates) // 2 - 1 : len(gates) // 2 + 1]
    assert high - low > 1e-6
    return edit(model, FACTS, threshold=(low + high) / 2)


class SlowDefer:
    """DEFER as EasyEdit runs it, with the weights of the first gate: one record, the whole model."""

    def __init__(self, model, hparams):
        self.model, self.h = model, hparams
        first = Gate.drawn(matrix(model, hparams.layer), hparams.threshold, Context.seed)
        self.weights = [weight.detach().clone().requires_grad_(True) for weight in first.parameters()]

    def heard(self, query_K):
        gate_1K, gate_1, value_DK, value_D = self.weights
        return torch.sigmoid(gate_1K @ query_K + gate_1), value_DK @ query_K + value_D

    def run(self, ids, key_id, is_training):
        def answer(inputs, outputs):
            gate, value = self.heard(inputs[0, key_id])
            if is_training:
                return gate * value + (1 - gate) * outputs
            return value.expand_as(outputs) if gate >= self.h.threshold else outputs

        with output_replaced(matrix(self.model, self.h.layer), answer):
            return self.model.model(input_ids=torch.tensor([ids])).logits[0]

    def edit(self, query):
        key_id = -1 if self.h.query == "sequence_last" else len(query.prompt_ids) - 1
        adam = torch.optim.Adam(self.weights, lr=self.h.lr)
        for _ in range(self.h.steps):
            logits = self.run(query.prompt_ids + query.target_ids, key_id, is_training=True)
            targets = torch.tensor(query.target_ids)
            loss = torch.nn.functional.cross_entropy(logits[len(query.prompt_ids) - 1 : -1], targets)
            adam.zero_grad()
            loss.backward()
            adam.step()

    @torch.no_grad()
    def teacher_forced(self, query):
        key_id = -1 if self.h.query == "sequence_last" else len(query.prompt_ids) - 1
        logits = self.run(query.prompt_ids + query.target_ids, key_id, is_training=False)
        return logits[len(query.prompt_ids) - 1 : -1].argmax(-1).tolist()

    @torch.no_grad()
    def generate(self, query):
        ids = list(query.prompt_ids)
        for _ in query.target_ids:
            key_id = -1 if self.h.query == "sequence_last" else len(query.prompt_ids) - 1
            ids.append(int(self.run(ids, key_id, is_training=False)[-1].argmax()))
        return ids[len(query.prompt_ids) :]


@pytest.mark.parametrize("query", ["prompt_last", "sequence_last"])
def test_weights_and_answers_are_those_of_the_whole_model_trained_one_record_at_a_time(query, model):
    asked = queries_of(model, [*FACTS, *UNRELATED])
    gates = sorted(edit(model, query=query).scope(asked))
    threshold = sum(gates[3:5]) / 2
    edited = edit(model, query=query, threshold=threshold)
    slow = SlowDefer(model, DeferHparams(**{**HPARAMS, "query": query, "threshold": threshold}))
    for wanted in queries_of(model, FACTS):
        slow.edit(wanted)
    for made, expected in zip(edited._memory.parameters(), slow.weights, strict=True):
        error = (made - expected).abs().max().item()
        print(f"{model.ref.name} {query} {tuple(made.shape)}: error {error:.1e}")
        assert error < 1e-6
    assert edited.teacher_forced(asked) == [slow.teacher_forced(one) for one in asked]
    assert edited.generate(asked) == [slow.generate(one) for one in asked]


def test_an_edit_lowers_the_loss_of_its_own_request(model):
    before, after = (edit(model, FACTS[:1], steps=steps).diagnostics()["final_loss"] for steps in (1, 30))
    assert after < before - 1


def test_four_questions_are_answered_as_one_by_one(model):
    queries = queries_of(model, FACTS)[:4]
    edited = half_open(model, FACTS[:4])
    assert edited.teacher_forced(queries) == [edited.teacher_forced([query])[0] for query in queries]
    assert edited.generate(queries) == [edited.generate([query])[0] for query in queries]
    alone = [edited.scope([query])[0] for query in queries]
    assert edited.scope(queries) == pytest.approx(alone, abs=rounding(model.spec.architecture, 1e-9))


def test_below_the_threshold_a_prompt_has_the_models_own_bits(model):
    queries = queries_of(model, FACTS)
    edited = half_open(model, FACTS)
    read, unedited = (read_by_head(model, each, queries) for each in (edited, WeightEditedModel(model)))
    same = [torch.equal(*pair) for pair in zip(read, unedited, strict=True)]
    assert same == [gate < edited._memory._threshold for gate in edited.scope(queries)]
    assert sum(same) == len(queries) // 2


def test_the_target_takes_part_in_the_routing_only_where_it_is_asked_to(model):
    prompt = FACTS[0][0]
    long, longer = queries_of(model, [(prompt, "French"), (prompt, "French and the home of Björk")])
    answers = {}
    for query in ("prompt_last", "sequence_last"):
        edited = edit(model, query=query)
        seen = []
        original = edited._memory.route
        edited._memory.route = lambda *args, original=original, seen=seen: seen.append(original(*args)) or seen[-1]
        edited.teacher_forced([long])
        edited.teacher_forced([longer])
        answers[query] = [float(decision.gates_B) for decision in seen]
    assert answers["prompt_last"][0] == pytest.approx(answers["prompt_last"][1], abs=1e-9)
    assert abs(answers["sequence_last"][0] - answers["sequence_last"][1]) > 1e-4


def test_an_edit_that_is_no_number_leaves_no_trace(model):
    """A token that is no number, in one prompt only, spoils that edit and no other."""
    ids = [set(query.prompt_ids + query.target_ids) for query in queries_of(model, FACTS)]
    own = ids[3] - set().union(*(ids[:3] + ids[4:]))
    model.embeddings.weight[min(own)] = float("nan")
    edited, without = edit(model, FACTS), edit(model, FACTS[:3] + FACTS[4:])
    assert edited.diagnostics() == {**without.diagnostics(), "failed": 1.0}
    for one, other in zip(edited._memory.parameters(), without._memory.parameters(), strict=True):
        assert torch.equal(one, other)


def test_when_every_edit_fails_it_says_so(model):
    model.head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="every edit"):
        edit(model)


def test_gate_and_value_are_trained_in_fp32_beside_a_model_in_bf16():
    model = three_layers("llama", torch.bfloat16)
    edited = edit(model, lr=1e-5)
    fresh = Gate.drawn(matrix(model, 1), 0.5, Context.seed)
    moved = (edited._memory.value.weight - fresh.value.weight).abs()
    assert moved.dtype == torch.float32
    assert (moved > 0).float().mean() > 0.9, "steps that bf16 would lose"
    queries = queries_of(model, FACTS)
    assert [len(ids) for ids in edited.generate(queries)] == [len(query.target_ids) for query in queries]


@pytest.mark.parametrize("query", ["prompt_last", "sequence_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_are_one_edit_bit_for_bit(dtype, query):
    model = three_layers("gptj", dtype)
    editor, requests = Defer(DeferHparams(**{**HPARAMS, "query": query})), requests_of(FACTS)
    whole = editor.edit(model, requests, {}, Context)
    blocks = editor.edit(model, requests[:1], {}, Context)
    for start, stop in ((1, 2), (2, 5), (5, 6)):
        earlier, kept = blocks, {name: value.clone() for name, value in blocks.state().items()}
        blocks = editor.extend(model, blocks.state(), requests[start:stop], {}, Context)
        assert has_bits(earlier.state(), kept), "what is gone on from stays as it is"
    asked = queries_of(model, [*FACTS, *UNRELATED])
    assert has_bits(blocks.state(), whole.state())
    assert blocks.scope(asked) == whole.scope(asked)
    assert blocks.generate(asked) == whole.generate(asked)
    assert blocks.diagnostics() == whole.diagnostics()


def test_what_is_kept_in_a_file_is_the_same_model_and_goes_on_like_it(model, tmp_path):
    before = weight_hash(model.model)
    editor, requests = Defer(DeferHparams(**HPARAMS)), requests_of(FACTS)
    edited = editor.edit(model, requests[:4], {}, Context)
    save_file(dict(edited.state()), tmp_path / "state")
    again = editor.extend(model, load_file(tmp_path / "state"), [], {}, Context)
    asked = queries_of(model, [*FACTS, *UNRELATED])
    assert has_bits(again.state(), edited.state())
    assert again.teacher_forced(asked) == edited.teacher_forced(asked)
    assert again.generate(asked) == edited.generate(asked)
    assert again.scope(asked) == edited.scope(asked)
    assert again.diagnostics() == edited.diagnostics()
    further = editor.extend(model, again.state(), requests[4:], {}, Context)
    assert has_bits(further.state(), edit(model).state())
    further.revert()
    assert weight_hash(model.model) == before


def test_only_the_first_block_draws(model, monkeypatch):
    editor, requests = Defer(DeferHparams(**HPARAMS)), requests_of(FACTS)
    edited = editor.edit(model, requests[:2], {}, Context)
    before = torch.get_rng_state()
    further = editor.extend(model, edited.state(), requests[2:], {}, Context)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(Context, "seed", Context.seed + 1)
    other = editor.extend(model, edited.state(), requests[2:], {}, Context)
    assert has_bits(other.state(), further.state())
    assert not has_bits(edit(model).state(), further.state())


def test_a_block_that_fails_altogether_is_counted_and_the_earlier_edits_stay(model):
    ids = [set(query.prompt_ids + query.target_ids) for query in queries_of(model, FACTS)]
    own = ids[3] - set().union(*(ids[:3] + ids[4:]))
    model.embeddings.weight[min(own)] = float("nan")
    editor, requests = Defer(DeferHparams(**HPARAMS)), requests_of(FACTS)
    edited = editor.edit(model, requests[:3], {}, Context)
    further = editor.extend(model, edited.state(), requests[3:4], {}, Context)
    assert further.diagnostics() == {**edited.diagnostics(), "failed": 1.0}
    expected = {**edited.state(), "failed": torch.tensor(1)}
    assert has_bits(further.state(), expected)
