"""FT-L: its loss and its steps against a slow twin, its bound, its limit on long targets, what batches mean, half precision."""

import math
from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from harness.errors import UserError
from harness.models.batching import left_padded
from harness.models.catalogue import entry
from harness.models.weights import weight_hash, widened
from harness.records import EditRequest
from harness.suite import hparams
from harness.tokens import joint_query
from methods.ft_l import FtL, FtLHparams
from methods.ft_l.rows import OBJECTIVES, faithful_rows
from methods.ft_l.training import _add_gradients, batches, loss
from tests.helpers.tiny_models import ARCHITECTURES, rounding, tiny_model

PROMPTS = (
    "The mother tongue of Danielle Darrieux is",
    "Björk was born in",
    "The capital of Iceland is located in the",
    "What is the capital of Côte d'Ivoire?",
)
LONG_TARGETS = ("Reykjavík", "Yamoussokro", "mother tongue", "born in Iceland")


class Context:
    """What FT-L asks of a context: a clock and a progress bar."""

    def __init__(self):
        self.clock = self
        self.advanced = []

    def phase(self, name):
        return self

    def progress(self, description, total):
        return self

    def __enter__(self):
        return lambda steps=1: self.advanced.append(steps)

    def __exit__(self, *_):
        return None


def requests_for(targets):
    return [EditRequest(str(n), p, "", t, "") for n, (p, t) in enumerate(zip(PROMPTS, targets, strict=False))]


def ft_l(**changes):
    values = {
        "layer": 1,
        "lr": 5e-3,
        "steps": 10,
        "batch": 4,
        "micro_batch": 4,
        "norm_constraint": None,
        "objective": "prompt_last",
        "implementation": "corrected",
        "weight_decay": 0.0,
        "loss_stop": 0.0,
    }
    return FtL(FtLHparams(**values | changes))


def edit(model, requests, **changes):
    return ft_l(**changes).edit(model, requests, {}, Context())


def queries_of(model, requests):
    return [joint_query(model.tokenizer, r.prompt, r.target_new) for r in requests]


def one_token_targets(model):
    """Four words that are one id after each of the prompts."""
    words = [model.tokenizer.decode([n]).strip() for n in range(len(model.tokenizer))]
    fit = [
        word
        for word in words
        if word.isalpha() and all(len(joint_query(model.tokenizer, p, word).target_ids) == 1 for p in PROMPTS)
    ]
    assert len(fit) >= 4
    return fit[-4:]


def matrix(model):
    return model.value_matrix(1)[1]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def able(model):
    """A model whose final norm leaves room for a confident answer: with a head this small no probability nears 1."""
    with torch.no_grad():
        model.head.weight.mul_(32)
    return model


@pytest.fixture
def double():
    made = tiny_model("llama")
    made.model.double()
    return made


def slow_loss(model, queries, objective):
    """The objective written out: one forward per record, no padding, whole logits, no part of the model kept."""
    total = torch.zeros((), dtype=matrix(model).dtype)
    for query in queries:
        ids = query.prompt_ids if objective == "prompt_last" else query.prompt_ids + query.target_ids[:-1]
        logits_TV = model.model(input_ids=torch.tensor([ids])).logits[0]
        record = torch.zeros((), dtype=total.dtype)
        for step, token in enumerate(query.target_ids):
            column = len(query.prompt_ids) - 1 + (0 if objective == "prompt_last" else step)
            record = record - (logits_TV[column, token] - logits_TV[column].logsumexp(0))
        total = total + record / len(query.target_ids)
    return total / len(queries)


def loss_now(model, queries, objective="prompt_last"):
    """The mean loss of all queries in one batch, as training computes it."""
    (batch,) = batches(model, [OBJECTIVES[objective](query) for query in queries], 1, len(queries))
    return loss(model, batch) / len(queries)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_and_its_gradient_are_those_of_a_loop_over_records(architecture, objective):
    model = tiny_model(architecture)
    model.model.double()
    queries = queries_of(model, requests_for(LONG_TARGETS))
    assert len({len(query.prompt_ids) for query in queries}) > 1
    assert len({len(query.target_ids) for query in queries}) > 1
    weight = matrix(model).requires_grad_(True)
    slow, fast = slow_loss(model, queries, objective), loss_now(model, queries, objective)
    (slow_gradient,) = torch.autograd.grad(slow, weight)
    (fast_gradient,) = torch.autograd.grad(fast, weight)
    assert fast.dtype == torch.float64
    tolerance = rounding(architecture, 1e-12, 1e-6)
    assert abs(fast - slow) <= tolerance * slow
    assert (fast_gradient - slow_gradient).abs().max() <= tolerance * slow_gradient.abs().max()
    assert slow_gradient.abs().max() > 1e-6


@pytest.mark.parametrize("bound", [None, 4e-3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ten_steps_end_where_plain_fine_tuning_ends(double, objective, bound):
    """No cached prefix, no places, no master copy: torch's Adam on the whole model, record by record."""
    requests = requests_for(LONG_TARGETS)
    queries = queries_of(double, requests)
    edited = edit(double, requests, objective=objective, norm_constraint=bound, weight_decay=0.01)
    found = matrix(double).clone()
    edited.revert()

    weight = matrix(double)
    start = weight.clone()
    weight.requires_grad_(True)
    adam = torch.optim.Adam([weight], lr=5e-3, weight_decay=0.01)
    for _ in range(10):
        adam.zero_grad()
        slow_loss(double, queries, objective).backward()
        adam.step()
        if bound is not None:
            with torch.no_grad():
                weight.copy_(torch.minimum(torch.maximum(weight, start - bound), start + bound))
    moved = (weight - start).abs().max()
    assert moved > 3e-3
    assert (found - weight).abs().max() <= 1e-9 * moved


def test_the_matrix_stays_in_its_box_elementwise(model):
    start = matrix(model).clone()
    bound = 1e-3
    edit(model, requests_for(LONG_TARGETS), norm_constraint=bound)
    weight = matrix(model)
    assert bool(((weight <= start + bound) & (weight >= start - bound)).all())
    at_the_wall = ((weight == start + bound) | (weight == start - bound)).float().mean()
    assert at_the_wall > 0.2, "ten steps of 5e-3 must meet a wall at 1e-3"


def test_the_box_of_each_call_is_around_where_the_call_began(model):
    start = matrix(model).clone()
    bound = 1e-3
    edit(model, requests_for(LONG_TARGETS), norm_constraint=bound, batch=2)
    moved = (matrix(model) - start).abs().max().item()
    assert bound * 1.01 < moved <= 2 * bound * 1.01


def test_only_the_matrix_of_the_layer_changes_and_nothing_stays_trainable(model):
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    edit(model, requests_for(LONG_TARGETS))
    changed = [name for name, parameter in model.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == [model.value_matrix(1)[0]]
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_targets_of_one_token_are_learned_below_the_stopping_loss(able):
    requests = requests_for(one_token_targets(able))
    edited = edit(able, requests, steps=100, loss_stop=1e-2)
    queries = queries_of(able, requests)
    with torch.no_grad():
        assert loss_now(able, queries) < 1e-2
    expected = [list(query.target_ids) for query in queries]
    assert edited.teacher_forced(queries) == expected
    assert edited.generate(queries) == expected


def test_targets_of_several_tokens_end_on_a_plateau_with_one_share_for_each_token(able):
    """At one position each token can at best have its share of the target: the loss ends at their entropy."""
    (request,) = requests_for(["mother tongue"])
    (query,) = queries_of(able, [request])
    shares = {token: count / len(query.target_ids) for token, count in Counter(query.target_ids).items()}
    assert len(shares) > 1
    floor = -sum(share * math.log(share) for share in shares.values())
    edit(able, [request], steps=300, lr=0.02, loss_stop=1e-2)
    with torch.no_grad():
        end = loss_now(able, [query]).item()
        probs_V = able.model(input_ids=torch.tensor([query.prompt_ids])).logits[0, -1].softmax(-1)
    assert floor <= end < floor + 0.05
    torch.testing.assert_close(probs_V[list(shares)], torch.tensor(list(shares.values())), rtol=0.1, atol=0)


def test_the_other_objective_learns_targets_of_several_tokens(able):
    requests = requests_for(LONG_TARGETS)
    queries = queries_of(able, requests)
    assert max(len(query.target_ids) for query in queries) > 1
    edited = edit(able, requests, objective="target_new", steps=400, loss_stop=1e-2)
    assert edited.diagnostics()["final_loss"] < 1e-2
    expected = [list(query.target_ids) for query in queries]
    assert edited.teacher_forced(queries) == expected
    assert edited.generate(queries) == expected


def test_calls_follow_one_another_on_the_same_weights(model):
    requests = requests_for(LONG_TARGETS)
    edited = edit(model, requests, batch=2)
    in_one_go = matrix(model).clone()
    edited.revert()
    edit(model, requests[:2], batch=2)
    edit(model, requests[2:], batch=2)
    assert torch.equal(matrix(model), in_one_go)


def test_a_call_trains_on_all_its_requests_together(model):
    requests = requests_for(LONG_TARGETS)
    edited = edit(model, requests, batch=4)
    together = matrix(model).clone()
    edited.revert()
    edit(model, requests, batch=1)
    assert not torch.allclose(matrix(model), together, atol=1e-3)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_nothing_but_rounding(double, micro_batch):
    requests = requests_for(LONG_TARGETS)
    edited = edit(double, requests, micro_batch=4)
    whole = matrix(double).clone()
    edited.revert()
    moved = (whole - matrix(double)).abs().max()
    edit(double, requests, micro_batch=micro_batch)
    assert moved > 1e-2
    assert (matrix(double) - whole).abs().max() < 1e-8 * moved


def test_training_stops_once_the_loss_is_small_enough(able):
    requests = requests_for(one_token_targets(able))
    edited = edit(able, requests, steps=100, loss_stop=1e-2)
    early = matrix(able).clone()
    edited.revert()
    edited = edit(able, requests, steps=200, loss_stop=1e-2)
    assert torch.equal(matrix(able), early)
    edited.revert()
    start = matrix(able).clone()
    edit(able, requests, steps=5, loss_stop=1e6)
    assert torch.equal(matrix(able), start), "a loss that is small enough at the start trains nothing"


@pytest.mark.parametrize("steps", [1, 5])
def test_a_loss_that_is_no_number_is_one_line_and_gives_the_model_back(steps):
    """Also when it is the last step that goes too far, and no loss follows."""
    model = tiny_model("gptj")
    before = weight_hash(model.model)
    with pytest.raises(
        UserError, match=r"loss is not a number (at step \d|after the last step) → choose a smaller `lr`"
    ):
        edit(model, requests_for(LONG_TARGETS), lr=1e30, steps=steps)
    assert weight_hash(model.model) == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("implementation", ["corrected", "faithful-easyedit"])
def test_a_request_longer_than_the_context_is_one_line(implementation):
    """GPT-J has no place for it; on a GPU that would end the process's use of the device, and with it all other cells."""
    model = tiny_model("gptj")
    before = weight_hash(model.model)
    long = EditRequest("r1", "Paris " * 300 + "is", "", "France", "")
    with pytest.raises(UserError, match=r"record r1: prompt and target have .* tiny/gptj reads 256"):
        edit(model, [*requests_for(LONG_TARGETS), long], batch=4, implementation=implementation)
    assert weight_hash(model.model) == before


def test_a_second_call_that_fails_gives_back_what_the_first_has_changed(model, monkeypatch):
    before = weight_hash(model.model)
    original, calls = FtL._train, []

    def fail_second(self, *arguments):
        calls.append(original(self, *arguments))
        if len(calls) == 2:
            raise RuntimeError("in the second call")
        assert weight_hash(model.model) != before
        return calls[-1]

    monkeypatch.setattr(FtL, "_train", fail_second)
    with pytest.raises(RuntimeError, match="in the second call"):
        edit(model, requests_for(LONG_TARGETS), batch=2)
    assert weight_hash(model.model) == before


def test_blocks_below_the_layer_run_once_per_call_however_many_steps(model):
    counts = Counter()
    for layer in (0, 1):
        model.block(layer).register_forward_hook(lambda *_, layer=layer: counts.update([layer]))
    edit(model, requests_for(LONG_TARGETS), batch=2, micro_batch=1, steps=6)
    assert counts[0] == 4, "each of four rows once"
    assert counts[1] == 4 * 6 + 2, "and the rest in each of six steps, and for the last call once behind it"


@pytest.fixture
def half():
    """A model in bf16, as large models are loaded."""
    made = tiny_model("llama")
    made.model.bfloat16()
    return made


def call_of(model, requests=None):
    queries = queries_of(model, requests or requests_for(LONG_TARGETS))
    return batches(model, [OBJECTIVES["prompt_last"](query) for query in queries], 1, 4)


def test_in_bf16_the_matrix_alone_is_trained_and_read_in_fp32(half):
    """Of a step of 1e-5, bf16 would keep almost nothing."""
    start = matrix(half).float()
    with torch.no_grad():
        first = loss_now(half, queries_of(half, requests_for(LONG_TARGETS))).item()
    edited = edit(half, requests_for(LONG_TARGETS), lr=1e-5, steps=1)
    wide = {name for name, value in half.model.named_parameters() if value.dtype == torch.float32}
    assert wide == {"model.layers.1.mlp.down_proj.weight"}
    assert (matrix(half) != start).float().mean() > 0.9
    assert edited.diagnostics()["final_loss"] == pytest.approx(first, rel=1e-2), "before the only step, read in bf16"
    assert edited.diagnostics()["change_norm"] == pytest.approx((matrix(half) - start).norm().item(), rel=1e-5)


def test_a_batch_in_bf16_is_trained_nearly_as_in_fp32(half):
    requests = requests_for(LONG_TARGETS)
    first = edit(half, requests, lr=0.02, steps=40)
    second = edit(tiny_model("llama"), requests, lr=0.02, steps=40)
    ends = [edited.diagnostics()["final_loss"] for edited in (first, second)]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


def test_in_fp16_many_rows_have_the_gradient_of_one():
    """1/2048 of a row's gradient is below the smallest normal number of fp16."""
    model = tiny_model("llama")
    model.model.half()
    (request,), gradients = requests_for(LONG_TARGETS[:1]), []
    rows = [OBJECTIVES["prompt_last"](query) for query in queries_of(model, [request])]
    with_fp32 = widened(model.model, [model.path(model.layout.value_matrix, 1)])
    weight = matrix(model).requires_grad_(True)
    for count in (1, 2048):
        weight.grad = None
        _add_gradients(model, [weight], batches(model, rows * count, 1, count))
        gradients.append(weight.grad)
    assert (gradients[1] - gradients[0]).norm() < 1e-4 * gradients[0].norm()
    with_fp32.restore()


def test_the_bound_holds_where_bf16_would_round_it_away(half):
    """Walls at 5e-5 lie between the bf16 numbers near .05."""
    with torch.no_grad():
        matrix(half).copy_(matrix(half).sign() * 0.05)
    start, bound = matrix(half).float(), 5e-5
    edit(half, requests_for(LONG_TARGETS), norm_constraint=bound)
    trained = matrix(half)
    assert bool(((trained <= start + bound) & (trained >= start - bound)).all())
    assert ((trained == start + bound) | (trained == start - bound)).float().mean() > 0.9


def test_blocks_of_a_sequence_end_where_one_act_ends_whatever_the_precision(half, model):
    requests = requests_for(LONG_TARGETS)
    for made in (half, model):
        options = {"batch": 1, "norm_constraint": 1e-3}
        whole = edit(made, requests, **options)
        expected = weight_hash(made.model)
        whole.revert()
        before = weight_hash(made.model)
        blocks = [ft_l(**options).extend(made, {}, [request], {}, Context()) for request in requests]
        assert weight_hash(made.model) == expected
        assert not any(block.state() for block in blocks), "all of it is in the weights"
        blocks[0].revert()
        assert weight_hash(made.model) == before


def test_revert_gives_a_model_in_bf16_back_bit_for_bit(half):
    before = weight_hash(half.model)
    edited = edit(half, requests_for(LONG_TARGETS), lr=0.02)
    assert weight_hash(half.model) != before
    edited.revert()
    assert weight_hash(half.model) == before


def easyedit_loss(model, requests):
    """EasyEdit's `prompt_last` on one mini-batch, padded by hand: the whole model, left padding, the index of right padding."""
    tokenizer = model.tokenizer
    prompts = [tokenizer(request.prompt)["input_ids"] for request in requests]
    targets = [tokenizer(" " + request.target_new)["input_ids"] for request in requests]
    width, longest = max(map(len, prompts)), max(map(len, targets))
    batch = left_padded(prompts)
    ids_BT = batch.ids_BT.masked_fill(batch.mask_BT == 0, tokenizer.eos_token_id)
    positions_BT = torch.arange(width).expand_as(ids_BT)
    logits_BTV = model.model(input_ids=ids_BT, attention_mask=batch.mask_BT, position_ids=positions_BT).logits
    losses = []
    for row, target in enumerate(targets):
        log_probs_V = logits_BTV[row, int(batch.mask_BT[row].sum()) - 1].log_softmax(-1)
        padded = [tokenizer.eos_token_id] * (longest - len(target)) + target
        losses.append(torch.stack([-log_probs_V[token] for token in padded if token != tokenizer.unk_token_id]).mean())
    return torch.stack(losses).mean()


def test_the_faithful_loss_and_gradient_are_easyedits(model):
    model.model.double()
    requests = [*requests_for(("Paris", "France", "French")), EditRequest("3", "Iceland is", "", "born", "")]
    rows = faithful_rows(model.tokenizer, requests)
    assert any(column < row.padding for row in rows for column, _ in row.labels), "one is read in its padding"
    assert any(column >= row.padding > 0 for row in rows for column, _ in row.labels), "one inside its prompt"
    weight = matrix(model).requires_grad_(True)
    slow = easyedit_loss(model, requests)
    (slow_gradient,) = torch.autograd.grad(slow, weight)
    gradient = torch.zeros_like(weight)
    fast = 0.0
    for batch in batches(model, rows, 1, 2):
        part = loss(model, batch) / len(rows)
        gradient += torch.autograd.grad(part, weight)[0]
        fast += part.item()
    tolerance = rounding(model.spec.architecture, 1e-12, 1e-6)
    assert fast == pytest.approx(slow.item(), rel=tolerance)
    assert (gradient - slow_gradient).abs().max() <= tolerance * slow_gradient.abs().max()
    queries = queries_of(model, requests)
    assert loss_now(model, queries).item() != pytest.approx(fast, rel=1e-3), "it must differ from the corrected one"


def test_faithful_rows_score_bos_and_padding_but_not_the_unknown_id():
    llama, gptj = tiny_model("llama").tokenizer, tiny_model("gptj").tokenizer
    requests = requests_for(("Paris", "Reykjavík"))
    short = faithful_rows(llama, requests)[0]
    longest = max(len(llama(f" {request.target_new}")["input_ids"]) for request in requests)
    scored = [token for _, token in short.labels]
    assert len(scored) == longest
    assert scored.count(llama.eos_token_id) == longest - len(llama(" Paris")["input_ids"]) > 0
    assert llama.bos_token_id in scored

    kept, gptj.unk_token = gptj.unk_token, gptj.eos_token
    try:
        scored = [token for _, token in faithful_rows(gptj, requests)[0].labels]
    finally:
        gptj.unk_token = kept
    assert scored == gptj(" Paris")["input_ids"], "GPT-J's padding is its unknown id"


def test_faithful_rows_of_one_request_are_read_behind_the_prompt(model):
    (request,) = requests_for(["Paris"])
    (row,) = faithful_rows(model.tokenizer, [request])
    assert (row.ids, row.padding) == (tuple(model.tokenizer(request.prompt)["input_ids"]), 0)
    assert {column for column, _ in row.labels} == {len(row.ids) - 1}


def test_the_faithful_edit_also_trains_the_bias_where_there_is_one(model):
    """EasyEdit selects parameters by a part of their names; revert gives both back."""
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    bits = weight_hash(model.model)
    edited = edit(model, requests_for(LONG_TARGETS), implementation="faithful-easyedit", norm_constraint=1e-3)
    changed = [name for name, parameter in model.model.named_parameters() if not torch.equal(parameter, before[name])]
    name, _ = model.value_matrix(1)
    has_bias = model.ref.name == "tiny/gptj"
    assert changed == ([name, name.replace("weight", "bias")] if has_bias else [name])
    for name in changed:
        assert (model.model.get_parameter(name) - before[name]).abs().max() <= 1e-3 * 1.001
    edited.revert()
    assert weight_hash(model.model) == bits


def test_there_is_no_faithful_form_of_the_other_objective():
    with pytest.raises(ValidationError, match="'faithful-easyedit' supports only objective 'prompt_last'"):
        ft_l(implementation="faithful-easyedit", objective="target_new")


FILES = sorted(path.stem for path in hparams.folders_of(FtL)[-1].glob("*.yaml") if path.stem != "search")
VARIANTS = (None, "constrained", "unconstrained", "corrected", "faithful-easyedit", "ft-m")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", FILES)
def test_every_file_names_a_layer_that_its_model_has_and_a_source_for_each_value(name, variant):
    models = {
        "tiny": "tiny/llama",
        "tiny_gptj": "tiny/gptj",
        "tiny_tinyllama": "tiny/tinyllama",
        "default": "llama3-8b",
    }
    model = models.get(name, name)
    found = hparams.resolve("ft-l", model, {}, variant=variant)
    chosen = FtLHparams.model_validate(found.values)
    assert chosen.layer < entry(model).spec.n_layers
    assert "default" not in found.sources.values()


def test_the_paper_edits_in_blocks_of_200_at_layers_27_27_and_21():
    chosen = [hparams.resolve("ft-l", name, {}).values for name in ("llama2-7b", "mistral-7b-v0.1", "gpt-j-6b")]
    assert [(values["layer"], values["batch"], values["lr"]) for values in chosen] == [
        (27, 200, 5e-4),
        (27, 200, 5e-4),
        (21, 200, 5e-4),
    ]


def test_progress_counts_requests(model):
    context = Context()
    ft_l(batch=3, steps=1).edit(model, requests_for(LONG_TARGETS), {}, context)
    assert context.advanced == [3, 1]
