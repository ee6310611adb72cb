"""Speculative decoding: the tokens of the step-by-step decoder, whatever was drafted, and what it saves."""

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.edited import WeightEditedModel
from harness.tokens import Query
from methods.onceedit.answers import Answers
from methods.onceedit.editor import OnceEdit
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.rounding import is_doubtful
from methods.onceedit.slots import Slots
from methods.onceedit.speculative import Pace, Speculation, repeated
from tests.helpers.any_architecture import any_architecture, hidden_alone
from tests.helpers.tiny_models import ARCHITECTURES, QUESTIONS, SENTENCES, catalogued_families, tiny_model
from tests.helpers.tiny_onceedit import EDITS, hparams_with

PROMPTS = [*(prompt for prompt, _ in (*EDITS, *QUESTIONS)), *SENTENCES]
VARIANTS = [
    {},
    {"decoder": "column", "relative": "plain"},
    {"alpha_gate": 0.5},
    {"keep_own": True, "per_step_alpha": True, "alpha_gate": 0.3},
    {"anchors": "bytes", "eos": "pair_special", "alpha": "fixed", "alpha_fixed": 0.4},
]


def asked(target, prompts=PROMPTS, longest=32):
    """Questions of unequal lengths; of their targets, generation reads only how many ids they have."""
    queries = []
    for n, prompt in enumerate(prompts):
        ids = tuple(target.tokenizer(prompt)["input_ids"])
        queries.append(Query(prompt, "", ids, (0,) * (longest - 5 * n % (longest - 1))))
    return queries


def pair_of(target, plugin, requests, **changes):
    return EnsembleModel.attach(target, plugin, hparams_with(**changes))


def speculated(pair, queries, drafts=None):
    """Tokens and counts of speculative decoding."""
    answers = Answers(queries)
    speculation = Speculation(pair, queries, answers, drafts)
    speculation.run()
    return answers.made, speculation.counts


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "+".join(map(str, changes)) or "default")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokens_are_those_of_the_step_by_step_decoder(architecture, plugin, requests, changes):
    target = tiny_model(architecture)
    queries = asked(target, PROMPTS[:6], longest=18)
    expected = pair_of(target, plugin, requests, **changes).greedy(queries)
    assert [len(ids) for ids in expected] == [18, 13, 8, 3, 15, 10]
    speculative = pair_of(target, plugin, requests, decode="speculative", **changes)
    assert speculative.greedy(queries) == expected
    assert speculated(speculative, queries, drafts=4)[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_thousands_of_tokens_are_those_of_the_step_by_step_decoder(architecture, plugin, requests):
    target = tiny_model(architecture)
    queries = asked(target, longest=140)
    pair = pair_of(target, plugin, requests)
    expected = pair.greedy(queries)
    assert sum(map(len, expected)) > 1500
    alone = [pair.greedy([query]) for query in queries[:3]]
    for drafts in (None, 6):
        made, counts = speculated(pair, queries, drafts)
        assert made == expected
        assert counts["settled"] < sum(map(len, expected)) / 10
        assert [speculated(pair, [query], drafts)[0] for query in queries[:3]] == alone


def test_where_two_tokens_tie_the_step_by_step_decoder_decides(plugin, requests):
    """Every token has a twin with the same row in the head, so every arg-max of the target model is a tie."""
    target = tiny_model("llama")
    head = target.head.weight.data
    head[1::2] = head[0 : len(head) - 1 : 2]
    changes = {"alpha": "fixed", "alpha_fixed": 0.0, "alpha_gate": 0.5}
    queries = asked(target, PROMPTS[:4], longest=8)
    made, counts = speculated(pair_of(target, plugin, requests, **changes), queries)
    assert made == pair_of(target, plugin, requests, **changes).greedy(queries)
    assert counts["settled"] == sum(len(query.target_ids) for query in queries)


def test_an_end_of_text_that_rounding_could_put_first_is_doubtful_in_any_rank(plugin, requests):
    """Three tokens are within rounding of each other, and the end of text is the third of them."""
    target = tiny_model("llama")
    pair = pair_of(target, plugin, requests, alpha="fixed", alpha_fixed=0.9)
    eos_id, plugin_logits_BU = pair.chooser.eos_id, plugin.read(["The capital of France is"]).logits_BU
    logits_BV = torch.full((1, target.model.config.vocab_size), -5.0)
    logits_BV[0, [7, 9, eos_id]] = torch.tensor([1.0, 1.0 - 1e-6, 1.0 - 2e-6])
    choice = pair.chooser.decide(logits_BV, plugin_logits_BU.softmax(dim=-1), torch.tensor([0.9]))
    error_B = torch.tensor([2e-6])
    certain = choice.decoded.certificate.margin_B > 4 * error_B
    assert certain.all(), "the fused token itself leads by more than rounding"
    assert is_doubtful(pair.chooser, choice, logits_BV, error_B, error_B).all()
    logits_BV[0, eos_id] = 0.9
    assert not is_doubtful(pair.chooser, choice, logits_BV, error_B, error_B).any()


def test_right_drafts_are_accepted_several_per_pass_of_the_target_model(plugin, requests):
    """With alpha 1 the plug-in alone decides, so its drafts are wrong only at a tie."""
    target = tiny_model("llama")
    pair = pair_of(target, plugin, requests, decode="speculative", alpha="fixed", alpha_fixed=1.0, eos="pair_special")
    queries, passes = asked(target, PROMPTS[:1]), []
    hook = target.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    _, counts = speculated(pair, queries, drafts=5)
    assert counts["accepted"] > 0.9 * counts["drafted"]
    assert len(passes) < 32 / 4
    pair.greedy(queries)
    hook.remove()
    assert pair.diagnostics()["tokens_per_block"] > 2


@pytest.mark.parametrize("decode", ["exact", "speculative"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"alpha": "fixed", "alpha_fixed": 0.2}, 1), ({"alpha": "similarity", "similarity_threshold": 0.95}, 0)],
    ids=["read", "similar"],
)
def test_below_the_gate_the_plugin_reads_the_prompts_once_or_nothing(plugin, requests, decode, changes, expected):
    """Only for the alpha that it has to read them for; the tokens are the target model's own."""
    target = tiny_model("mistral")
    queries = asked(target, ["Once upon a time there was", "My name is", "Two and two are"])
    pair = pair_of(target, plugin, requests, decode=decode, alpha_gate=0.5, **changes)
    passes = []
    hook = plugin.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    made = pair.greedy(queries)
    pair.teacher_forced(queries)
    hook.remove()
    found = pair.diagnostics()
    settled = found.get("settled_share", 0.0) > 0  # the step-by-step decoder starts anew
    assert len(passes) == expected * (2 + settled)
    assert found["gated_share"] == 1.0
    assert made == WeightEditedModel(target).generate(queries)


def test_in_a_batch_the_plugin_reads_the_rows_that_it_may_change(plugin, requests):
    target = tiny_model("llama")
    pair = pair_of(target, plugin, requests, alpha="similarity", alpha_gate=0.5)
    edited, other = asked(target, [EDITS[0][0], "Once upon a time there was"], longest=6)
    assert [alpha >= 0.5 for alpha in pair.scope([edited, other])] == [True, False]
    widths = []
    hook = plugin.model.base_model.register_forward_hook(lambda *args: widths.append(len(args[2][0])))
    together = pair.greedy([edited, other])
    hook.remove()
    assert set(widths) == {1}
    assert together == [*pair.greedy([edited]), *pair.greedy([other])]
    assert pair.diagnostics()["gated_share"] == len(together[1]) / (len(together[0]) + len(together[1]))


def test_each_step_is_counted_once(plugin, requests):
    target = tiny_model("gptj")
    queries = asked(target)
    exact, speculative = (pair_of(target, plugin, requests, decode=decode) for decode in ("exact", "speculative"))
    exact.greedy(queries)
    speculative.greedy(queries)
    for name in ("gated_share", "ended_share", "fused_share", "held_back_share"):
        assert speculative.diagnostics()[name] == exact.diagnostics()[name]


@pytest.mark.parametrize("changes", [{"sync": "map"}, {"decoder": "column", "init": "llm"}, {"decoder": "search"}])
def test_what_cannot_be_verified_is_refused(changes):
    with pytest.raises(ValueError, match="decode 'speculative' needs"):
        hparams_with(decode="speculative", **changes)


def test_a_target_whose_window_counts_columns_is_refused_before_anything_runs(data):
    with catalogued_families(), pytest.raises(UserError, match="cannot verify drafts"):
        OnceEdit(hparams_with(decode="speculative")).artifacts(ModelRef("tiny/gpt_neo", "trained"), data.ref, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_target_in_half_precision_is_refused_before_anything_runs(dtype, data):
    target = ModelRef("llama2-7b", "random", dtype=dtype)
    with pytest.raises(UserError, match=f"llama2-7b cannot verify drafts in {dtype}"):
        OnceEdit(hparams_with(decode="speculative")).artifacts(target, data.ref, 0)
    OnceEdit(hparams_with()).artifacts(target, data.ref, 0)


def test_exact_decoding_leaves_the_identity_of_cells_as_it_was():
    assert "decode" not in hparams_with().identity()
    assert hparams_with(decode="speculative").identity()["decode"] == "speculative"


@pytest.mark.parametrize(
    ("plugin_cost", "rate", "drafts"), [(0.16, 0.9, 6), (0.16, 0.3, 1), (1.0, 0.9, 3), (1.0, 0.2, 0)]
)
def test_the_number_of_drafts_follows_cost_and_acceptance(plugin_cost, rate, drafts):
    def tokens_per_cost(k):
        return sum(rate**n for n in range(k + 1)) / (1 + 0.1 * k + plugin_cost * (k + 1))

    assert max(range(17), key=tokens_per_cost) == drafts
    pace = Pace.of_plugin(plugin_cost)
    pace.rate = rate
    assert pace.drafts(31) == drafts
    assert pace.drafts(0) == 0


def test_rejected_drafts_lower_the_number_and_accepted_ones_raise_it():
    pace = Pace.of_plugin(0.16)
    first = pace.drafts(16)
    for _ in range(5):
        pace.note(False)
    assert pace.drafts(16) < first
    for _ in range(20):
        pace.note(True)
    assert pace.drafts(16) > first


@pytest.mark.parametrize(
    ("ids", "continued"),
    [
        ([1, 2, 3, 9, 8, 1, 2, 3], [9, 8, 1, 2, 3, 9]),
        ([7, 7, 7, 7], [7, 7, 7, 7, 7, 7]),
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], [5, 1, 2, 3, 5, 1]),
        ([1, 2, 3, 4, 2, 3], []),
        ([1, 2], []),
    ],
)
def test_a_text_is_continued_as_it_continued_before(ids, continued):
    assert repeated(ids, 6) == continued


def test_a_text_that_repeats_itself_takes_fewer_passes_of_both_models(plugin, requests):
    """Continuations of random models end in a loop."""
    target = tiny_model("llama")
    queries = asked(target, PROMPTS[:1], longest=96)
    pair = pair_of(target, plugin, requests, decode="speculative")
    passes = {"target": 0, "plug-in": 0}

    def counting(name):
        return lambda *_: passes.update({name: passes[name] + 1})

    hooks = [
        model.base_model.register_forward_hook(counting(name))
        for name, model in (("target", target.model), ("plug-in", plugin.model))
    ]
    made, counts = speculated(pair, queries)
    for hook in hooks:
        hook.remove()
    assert made == pair_of(target, plugin, requests).greedy(queries)
    assert counts["copied"] > 24
    assert passes["plug-in"] < 96
    assert passes["target"] < 64


def test_a_cropped_cache_holds_only_what_is_used_and_gives_the_same_states():
    model = any_architecture("llama")
    slots = Slots(model, 2, crops=True)
    slots.hold([[5, 6, 7, 8, 9], [10, 11]])
    hidden_BD = slots.hold([[5, 6, 20, 21], [10, 12, 13]], again=[2, 3])
    assert slots._cache.get_seq_length() == 2 + 3  # the slots of 5 and 6 are used, and 10 is read again with the rest
    for row, (ids, fed) in enumerate((([5, 6, 20, 21], 2), ([10, 12, 13], 3))):
        for n in range(fed):
            expected_D = hidden_alone(model, ids[: len(ids) - n])
            assert torch.allclose(slots.chunk_BCD[row, -1 - n], expected_D, atol=1e-5)
        assert torch.allclose(hidden_BD[row], hidden_alone(model, ids), atol=1e-5)
