"""The pair as one model, against a reference that reads one prefix at a time with whole logits and no cache."""

import pytest

from harness.models.edited import WeightEditedModel
from harness.tokens import Query, joint_query
from methods.onceedit.anchors import pair_anchors
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.slow_onceedit import Reference
from tests.helpers.slow_protocols import generate as own_generation
from tests.helpers.slow_protocols import teacher_forced as own_teacher_forced
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model
from tests.helpers.tiny_onceedit import hparams_with

QUESTIONS = (
    ("The mother tongue of Danielle Darrieux is", "Iceland"),
    ("What is the capital of Côte d'Ivoire?", "Paris"),
    ("Björk was born in", "France and Reykjavík"),
    ("東京 is the capital of", "日本"),
    ("The Eiffel Tower is located in", "Paris, the capital of France"),
    ("Paris", "is the capital of France and the home of Björk"),
    ("Yamoussoukro was born in", "Côte d'Ivoire"),
)
VARIANTS = (
    {},
    {"decoder": "column", "relative": "plain"},
    {"decoder": "column", "init": "llm"},
    {"decoder": "search", "target": "soft", "init": "llm", "search_lr": 2.0, "alpha": "fixed"},
    {"anchors": "bytes", "eos": "pair_special"},
    {"alpha_gate": 0.5},
    {"per_step_alpha": True},
    {"keep_own": True},
    {"alpha": "similarity", "alpha_gate": 0.5},
    {"alpha": "both"},
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def target(request):
    """In fp64: the search amplifies rounding where a gradient is nearly zero, and chance would decide the test."""
    loaded = tiny_model(request.param)
    loaded.model.double()
    return loaded


@pytest.fixture
def queries(target):
    return [joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS]


def named(changes):
    return "+".join(map(str, changes)) or "default"


@pytest.mark.parametrize("changes", VARIANTS, ids=named)
def test_teacher_forcing_equals_reading_one_prefix_at_a_time(target, fp64_plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    reference = Reference(target, fp64_plugin, hparams)
    expected = [
        [reference.step(query, query.target_ids[:j])[0] for j in range(len(query.target_ids))] for query in queries
    ]
    assert EnsembleModel.attach(target, fp64_plugin, hparams).teacher_forced(queries) == expected


@pytest.mark.parametrize("changes", VARIANTS, ids=named)
def test_generation_equals_one_step_at_a_time(target, fp64_plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    reference = Reference(target, fp64_plugin, hparams)
    expected = []
    for query in queries:
        ids = []
        for _ in query.target_ids:
            ids.append(reference.step(query, ids)[0])
        expected.append(ids)
    assert EnsembleModel.attach(target, fp64_plugin, hparams).greedy(queries) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha_gate": 0.5}, {"keep_own": True, "per_step_alpha": True}, {"anchors": "bytes", "eos": "pair_special"}],
    ids=named,
)
def test_with_mapped_tokens_the_plugin_reads_its_own_ids_of_the_anchors(
    target, fp64_plugin, requests, queries, changes
):
    hparams = hparams_with(sync="map", **changes)
    reference = Reference(target, fp64_plugin, hparams)
    pair, expected = reference.pair, []
    for query in queries:
        ids, read, is_behind = [], reference.tokenised(query.prompt), False
        for _ in query.target_ids:
            token, anchor = reference.step(query, ids, read)
            ids.append(token)
            if anchor is None and token in pair.llm_ids:
                anchor = pair.llm_ids.index(token)
            if anchor is None or is_behind:
                text, started = reference.text(query, ids)
                read, is_behind = reference.tokenised(text), bool(started)
            else:
                read = [*read, pair.plugin_ids[anchor]]
        expected.append(ids)
    assert EnsembleModel.attach(target, fp64_plugin, hparams).greedy(queries) == expected


def test_a_batch_equals_its_questions_one_by_one(target, fp64_plugin, requests, queries):
    together = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    alone = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    assert together.teacher_forced(queries) == [alone.teacher_forced([query])[0] for query in queries]
    assert together.generate(queries) == [alone.generate([query])[0] for query in queries]


def test_a_closed_gate_leaves_the_model_to_itself(target, fp64_plugin, requests, queries):
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with(alpha="fixed", alpha_fixed=0.0, alpha_gate=0.5))
    assert pair.teacher_forced(queries) == [own_teacher_forced(target, query) for query in queries]
    assert pair.generate(queries) == [own_generation(target, query) for query in queries]
    assert pair.diagnostics()["gated_share"] == 1.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_target_computes_what_it_computes_unedited_to_the_bit(architecture, fp64_plugin, requests):
    """In fp32, where another batch shape could round otherwise and a locality question be lost to it."""
    target = tiny_model(architecture)
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with(alpha="fixed", alpha_fixed=0.0, alpha_gate=0.5))
    queries = [joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS]
    seen = []
    hook = target.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for model in (WeightEditedModel(target), pair):
        model.teacher_forced(queries)
        model.generate(queries)
    hook.remove()
    plain, ours = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert ours[0].equal(plain[0])
    for step, (ours_BD, plain_BD) in enumerate(zip(ours[1:], plain[1:], strict=True)):
        active = [n for n, query in enumerate(queries) if step < len(query.target_ids)]
        assert ours_BD.shape == plain_BD.shape
        assert ours_BD[active].equal(plain_BD[active])


def test_a_llama_pair_answers_its_edits_and_the_target_is_not_touched(fp64_plugin, requests):
    target = tiny_model("llama")
    target.model.double()
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    queries = [joint_query(target.tokenizer, request.prompt, request.target_new) for request in requests]
    answers = [list(query.target_ids) for query in queries]
    assert pair.teacher_forced(queries) == answers
    assert pair.generate(queries) == answers
    pair.revert()
    assert all(value.equal(before[name]) for name, value in target.model.state_dict().items())


def test_diagnostics_tell_edits_from_other_prompts(fp64_plugin, requests):
    target = tiny_model("mistral")
    target.model.double()
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    sizes = {"anchors", "vocabulary", "width", "plugin_vocabulary", "plugin_width"}
    assert set(pair.diagnostics()) == sizes
    pair.teacher_forced([joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS])
    figures = pair.diagnostics()
    assert figures["alpha_edits_mean"] > 0.7
    assert figures["alpha_others_p10"] <= figures["alpha_others_p50"] <= figures["alpha_others_p90"]
    assert figures["anchors"] == len(
        pair_anchors(Vocabulary.of(target.tokenizer), Vocabulary.of(fp64_plugin.tokenizer))
    )
    assert sum(figures[f"certified_l{level}_share"] for level in (0, 1, 2)) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for name, value in figures.items() if name not in sizes)


def test_diagnostics_tell_what_the_plugin_was_spared(fp64_plugin, requests):
    target = tiny_model("gptj")
    target.model.double()
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    query = joint_query(target.tokenizer, "Paris", "is the capital of France")
    texts = ["Paris", *("Paris" + target.tokenizer.decode(query.target_ids[:n]) for n in range(len(query.target_ids)))]
    alone = [tuple(fp64_plugin.tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)]
    beginnings = {ids[:n] for ids in alone for n in range(1, len(ids) + 1)}
    pair.teacher_forced([query])
    assert pair.diagnostics()["packed_share"] == len(beginnings) / sum(map(len, alone))
    pair.generate([query])
    assert pair.diagnostics()["fed_per_token"] > 0.5


def test_no_question_has_no_answer(fp64_plugin, requests):
    pair = EnsembleModel.attach(tiny_model("llama"), fp64_plugin, hparams_with())
    assert pair.teacher_forced([]) == pair.generate([]) == pair.scope([]) == []


def test_inside_a_character_the_plugin_has_no_say(fp64_plugin, requests):
    """GPT-J spells 日 in bytes; after the first of them the text is held back."""
    target = tiny_model("gptj")
    target.model.double()
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with(alpha="fixed", alpha_fixed=1.0, eos="pair_special"))
    letters = [target.tokenizer.convert_tokens_to_ids(letter) for letter in "ĠæĹ¥"]
    query = Query(
        "東京 is the capital of", "日", tuple(target.tokenizer("東京 is the capital of")["input_ids"]), tuple(letters)
    )
    (found,), (own,) = pair.teacher_forced([query]), WeightEditedModel(target).teacher_forced([query])
    assert pair.diagnostics()["held_back_share"] == 0.5
    assert [a == b for a, b in zip(found, own, strict=True)] == [False, False, True, True], "own tokens where held back"


def test_a_prompt_cut_by_joint_tokenisation_is_spelled_from_its_ids(target, fp64_plugin, requests):
    """The target's first id may begin before the prompt ends; the plug-in then reads what stands in front of it."""
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    ids = tuple(target.tokenizer("Björk was born in Reykjavík")["input_ids"])
    prompt = tuple(target.tokenizer("Björk was born")["input_ids"])
    assert ids[: len(prompt)] == prompt
    query = Query("Björk was born in", "Reykjavík", prompt, ids[len(prompt) :])
    assert [transcript.starts_at_prompt for transcript in pair.transcripts([query])] == [False]
    assert [len(ids) for ids in pair.generate([query])] == [len(query.target_ids)]
    assert [len(ids) for ids in pair.teacher_forced([query])] == [len(query.target_ids)]


def test_one_query_may_be_asked_under_both_protocols_in_any_order(target, fp64_plugin, requests, queries):
    first = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    second = EnsembleModel.attach(target, fp64_plugin, hparams_with())
    forced, generated = first.teacher_forced(queries), first.generate(queries)
    assert second.generate(queries) == generated
    assert second.teacher_forced(queries) == forced


@pytest.mark.parametrize("decode", ["exact", "speculative"])
def test_rows_that_end_early_do_not_change_others(decode, fp64_plugin, requests):
    """As under the natural protocols: an answer ends by itself, whatever the others do."""
    target = tiny_model("llama")
    target.model.double()
    queries = [Query(prompt, "", tuple(target.tokenizer(prompt)["input_ids"]), (0,) * 6) for prompt, _ in QUESTIONS[:3]]
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with(decode=decode, eos="pair_special"))
    endless, stop, seen = pair.greedy(queries), (2, 6, 4), [0, 0, 0]

    def ends(row, id_):
        assert id_ == endless[row][seen[row]], "ids come in order, and none after the end"
        seen[row] += 1
        return seen[row] == stop[row]

    assert pair.generate_until(queries, ends) == [ids[:n] for ids, n in zip(endless, stop, strict=True)]
