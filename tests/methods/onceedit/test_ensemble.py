"""The pair as one model, against a reference that reads one prefix at a time with whole logits and no cache."""

import pytest
import torch
from slow_protocols import generate as own_generation
from slow_protocols import teacher_forced as own_teacher_forced
from tiny_models import ARCHITECTURES, tiny_model
from tiny_onceedit import hparams_with

from harness.tokens import Query, joint_query
from methods.onceedit.anchors import pair_anchors
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.vocabulary import Vocabulary

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
)


@pytest.fixture(params=ARCHITECTURES)
def target(request):
    """In fp64: the search amplifies rounding where a gradient is nearly zero, and chance would decide the test."""
    loaded = tiny_model(request.param)
    loaded.model.double()
    return loaded


@pytest.fixture(scope="module")
def plugin(plugin_folder):
    loaded = EditedPlugin.load(plugin_folder, "cpu")
    loaded.model.double()
    return loaded


@pytest.fixture
def queries(target):
    return [joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS]


def bytes_of_a_started_character(raw):
    """How many of the last bytes begin a character that needs more of them."""
    for n in (1, 2, 3):
        needed = 1 + sum(lead <= raw[-n] <= 0xF4 for lead in (0xC2, 0xE0, 0xF0))
        if needed > n and all(byte & 0xC0 == 0x80 for byte in raw[len(raw) - n + 1 :]):
            return n
    return 0


def reference_step(target, plugin, hparams, query, ids):
    """One token of the pair after `ids` of a query's continuation: no batch, no padding, no cache."""
    logits_V = target.model(input_ids=torch.tensor([[*query.prompt_ids, *ids]])).logits[0, -1]
    own = int(logits_V.argmax())
    vocabulary = Vocabulary.of(target.tokenizer)
    if hparams.eos == "deepen" and own == target.tokenizer.eos_token_id:
        return own
    raw = query.prompt.encode() + vocabulary.spell(ids)
    started = bytes_of_a_started_character(raw)
    text = raw[: len(raw) - started].decode(errors="replace")

    def last(text):
        return plugin.model(input_ids=torch.tensor([plugin.tokenizer(text)["input_ids"]])).logits[0, -1]

    alpha = last(text if hparams.per_step_alpha else query.prompt)[plugin.weight_id].sigmoid()
    if hparams.alpha == "fixed":
        alpha = torch.tensor(hparams.alpha_fixed)
    if started:
        alpha = torch.tensor(0.0)
    if alpha < hparams.alpha_gate:
        return own
    pair = pair_anchors(
        vocabulary, Vocabulary.of(plugin.tokenizer), hparams.anchors, pair_special=hparams.eos == "pair_special"
    )
    llm = RelativeState.build(target.model.get_input_embeddings().weight, pair.llm_ids, hparams.relative)
    state = RelativeState.build(plugin.model.get_input_embeddings().weight, pair.plugin_ids, hparams.relative)
    logits_U = last(text)
    logits_U[plugin.weight_id] = -torch.inf
    fused_A = alpha * (logits_U.softmax(-1) @ state.rows(0, state.n_tokens)) + (1 - alpha) * (logits_V.softmax(-1) @ llm.rows(0, llm.n_tokens))
    if hparams.decoder == "owner":
        return int(llm.rows(0, llm.n_tokens)[:, fused_A.argmax()].argmax())
    target_A = fused_A if hparams.target == "soft" else torch.eye(len(pair), dtype=torch.float64)[anchor]
    start_V = logits_V if hparams.init == "llm" else torch.zeros_like(logits_V)
    z_V = start_V.clone().detach().requires_grad_(True)
    optimiser = torch.optim.AdamW([z_V], lr=hparams.search_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10, eta_min=hparams.search_lr / 4)
    for _ in range(hparams.search_steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            log_q_A = (z_V.softmax(-1) @ llm.rows(0, llm.n_tokens)).log()
            torch.nn.functional.kl_div(log_q_A, target_A, reduction="none").mean().backward()
        optimiser.step()
        schedule.step()
    return int(z_V.argmax()), anchor


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "+".join(map(str, changes)) or "default")
def test_teacher_forcing_equals_reading_one_prefix_at_a_time(target, plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    with torch.no_grad():
        expected = [
            [
                reference_step(target, plugin, hparams, query, query.target_ids[:j])[0]
                for j in range(len(query.target_ids))
            ]
            for query in queries
        ]
    assert EnsembleModel.attach(target, plugin, requests, hparams).teacher_forced(queries) == expected


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "+".join(map(str, changes)) or "default")
def test_generation_equals_one_step_at_a_time(target, plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    expected = []
    with torch.no_grad():
        for query in queries:
            ids = []
            for _ in query.target_ids:
                ids.append(reference_step(target, plugin, hparams, query, ids)[0])
            expected.append(ids)
    assert EnsembleModel.attach(target, plugin, requests, hparams).generate(queries) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha_gate": 0.5}, {"keep_own": True, "per_step_alpha": True}, {"anchors": "bytes", "eos": "pair_special"}],
    ids=lambda changes: "+".join(map(str, changes)) or "default",
)
def test_with_mapped_tokens_the_plugin_reads_its_own_ids_of_the_anchors(target, plugin, requests, queries, changes):
    hparams = hparams_with(sync="map", **changes)
    pair = pair_of(target, plugin, hparams)
    expected = []
    with torch.no_grad():
        for query in queries:
            ids, read, is_behind = [], plugin.tokenizer(query.prompt)["input_ids"], False
            for _ in query.target_ids:
                token, anchor = reference_step(target, plugin, hparams, query, ids, read)
                ids.append(token)
                if anchor is None and token in pair.llm_ids:
                    anchor = pair.llm_ids.index(token)
                if anchor is None or is_behind:
                    text, started = text_of(target, query, ids)
                    read, is_behind = plugin.tokenizer(text)["input_ids"], bool(started)
                else:
                    read = [*read, pair.plugin_ids[anchor]]
            expected.append(ids)
    assert EnsembleModel.attach(target, plugin, requests, hparams).generate(queries) == expected


def test_a_batch_equals_its_questions_one_by_one(target, plugin, requests, queries):
    together = EnsembleModel.attach(target, plugin, requests, hparams_with())
    alone = EnsembleModel.attach(target, plugin, requests, hparams_with())
    assert together.teacher_forced(queries) == [alone.teacher_forced([query])[0] for query in queries]
    assert together.generate(queries) == [alone.generate([query])[0] for query in queries]


def test_a_closed_gate_leaves_the_model_to_itself(target, plugin, requests, queries):
    pair = EnsembleModel.attach(target, plugin, requests, hparams_with(alpha="fixed", alpha_fixed=0.0, alpha_gate=0.5))
    assert pair.teacher_forced(queries) == [own_teacher_forced(target, query) for query in queries]
    assert pair.generate(queries) == [own_generation(target, query) for query in queries]
    assert pair.diagnostics()["gated_share"] == 1.0


def test_a_llama_pair_answers_its_edits_and_the_target_is_not_touched(plugin, requests):
    target = tiny_model("llama")
    target.model.double()
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    pair = EnsembleModel.attach(target, plugin, requests, hparams_with())
    queries = [joint_query(target.tokenizer, request.prompt, request.target_new) for request in requests]
    answers = [list(query.target_ids) for query in queries]
    assert pair.teacher_forced(queries) == answers
    assert pair.generate(queries) == answers
    pair.revert()
    assert all(value.equal(before[name]) for name, value in target.model.state_dict().items())


def test_diagnostics_tell_edits_from_other_prompts(plugin, requests):
    target = tiny_model("mistral")
    target.model.double()
    pair = EnsembleModel.attach(target, plugin, requests, hparams_with())
    assert set(pair.diagnostics()) == {"anchors"}
    pair.teacher_forced([joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS])
    figures = pair.diagnostics()
    assert figures["alpha_edits_mean"] > 0.7
    assert figures["alpha_others_p10"] <= figures["alpha_others_p50"] <= figures["alpha_others_p90"]
    assert figures["anchors"] == len(pair_anchors(Vocabulary.of(target.tokenizer), Vocabulary.of(plugin.tokenizer)))
    assert sum(figures[f"certified_l{level}_share"] for level in (0, 1, 2)) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "anchors")


def test_inside_a_character_the_plugin_has_no_say(plugin, requests):
    """GPT-J spells 日 in bytes; after the first of them the text is held back."""
    target = tiny_model("gptj")
    target.model.double()
    pair = EnsembleModel.attach(target, plugin, requests, hparams_with())
    letters = [target.tokenizer.convert_tokens_to_ids(letter) for letter in "ĠæĹ¥"]
    query = Query(
        "東京 is the capital of", "日", tuple(target.tokenizer("東京 is the capital of")["input_ids"]), tuple(letters)
    )
    pair.teacher_forced([query])
    assert pair.diagnostics()["held_back_share"] == 0.5


def test_a_prompt_cut_by_joint_tokenisation_is_spelled_from_its_ids(target, plugin, requests):
    """The target's first id may begin before the prompt ends; the plug-in then reads what stands in front of it."""
    pair = EnsembleModel.attach(target, plugin, requests, hparams_with())
    ids = tuple(target.tokenizer("Björk was born in Reykjavík")["input_ids"])
    prompt = tuple(target.tokenizer("Björk was born")["input_ids"])
    assert ids[: len(prompt)] == prompt
    query = Query("Björk was born in", "Reykjavík", prompt, ids[len(prompt) :])
    assert [transcript.starts_at_prompt for transcript in pair._transcripts([query])] == [False]
    assert [len(ids) for ids in pair.generate([query])] == [len(query.target_ids)]
    assert [len(ids) for ids in pair.teacher_forced([query])] == [len(query.target_ids)]


def test_one_query_may_be_asked_under_both_protocols_in_any_order(target, plugin, requests, queries):
    first = EnsembleModel.attach(target, plugin, requests, hparams_with())
    second = EnsembleModel.attach(target, plugin, requests, hparams_with())
    forced, generated = first.teacher_forced(queries), first.generate(queries)
    assert second.generate(queries) == generated
    assert second.teacher_forced(queries) == forced
