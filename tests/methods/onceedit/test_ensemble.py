"""The pair as one model, against a reference that reads one prefix at a time with whole logits and no cache."""

from functools import cache

import pytest
import torch

from harness.models.edited import WeightEditedModel
from harness.tokens import Query, joint_query
from methods.onceedit.anchors import pair_anchors
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.slow_protocols import generate as own_generation
from tests.helpers.slow_protocols import teacher_forced as own_teacher_forced
from tests.helpers.slow_similarity import similarity
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model
from tests.helpers.tiny_onceedit import EDITS, hparams_with

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


def transfer_matrix(model, anchor_ids, rule):
    """R as it is written down: cosines with the anchors, scaled as the rule says, softmax over each row."""
    rows_VD = model.get_input_embeddings().weight
    units_VD = rows_VD / rows_VD.norm(dim=-1, keepdim=True)
    cosines_VA = units_VD @ units_VD[list(anchor_ids)].T
    for anchor, token in enumerate(anchor_ids):
        cosines_VA[token, anchor] = 1.0
    if rule == "deepen":
        cosines_VA = 100 * cosines_VA / cosines_VA.norm(dim=-1, keepdim=True)
    return cosines_VA.softmax(dim=-1)


@cache
@torch.no_grad()
def logits_after(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


class Reference:
    """The pair at one place at a time: no batch, no padding, no cache, whole matrices."""

    def __init__(self, target, plugin, hparams):
        self.target, self.plugin, self.hparams = target, plugin, hparams
        self.vocabulary = Vocabulary.of(target.tokenizer)
        pairs_special = hparams.eos == "pair_special"
        self.pair = pair_anchors(
            self.vocabulary, Vocabulary.of(plugin.tokenizer), hparams.anchors, pair_special=pairs_special
        )
        self.llm_VA = transfer_matrix(target.model, self.pair.llm_ids, hparams.relative)
        self.plugin_UA = transfer_matrix(plugin.model, self.pair.plugin_ids, hparams.relative)

    def text(self, query, ids):
        """What can be read of a query's continuation, and how many bytes of a started character are behind it."""
        raw = query.prompt.encode() + self.vocabulary.spell(ids)
        started = bytes_of_a_started_character(raw)
        return raw[: len(raw) - started].decode(errors="replace"), started

    def tokenised(self, text):
        return self.plugin.tokenizer(text)["input_ids"]

    @torch.no_grad()
    def step(self, query, ids, plugin_ids=None):
        """One token after `ids` of a query's continuation, and the anchor that was decoded or None.

        The plug-in reads `plugin_ids`, by default the tokenised text.
        """
        hparams = self.hparams
        logits_V = logits_after(self.target.model, (*query.prompt_ids, *ids))
        own = int(logits_V.argmax())
        if hparams.eos == "deepen" and own == self.target.tokenizer.eos_token_id:
            return own, None
        text, started = self.text(query, ids)
        plugin_ids = plugin_ids or self.tokenised(text)
        alpha_ids = plugin_ids if hparams.per_step_alpha else self.tokenised(query.prompt)
        alpha = logits_after(self.plugin.model, tuple(alpha_ids))[self.plugin.weight_id].sigmoid()
        if hparams.alpha in ("similarity", "both"):
            near = similarity(self.plugin, [(prompt, "") for prompt, _ in EDITS], query.prompt, 0.0)
            similar = torch.tensor(hparams.similarity_slope * (near - hparams.similarity_threshold)).sigmoid()
            alpha = torch.maximum(alpha, similar) if hparams.alpha == "both" else similar
        if hparams.alpha == "fixed":
            alpha = torch.tensor(hparams.alpha_fixed)
        if started:
            alpha = torch.tensor(0.0)
        if alpha < hparams.alpha_gate:
            return own, None
        logits_U = logits_after(self.plugin.model, tuple(plugin_ids)).clone()
        logits_U[self.plugin.weight_id] = -torch.inf
        llm_A = logits_V.softmax(-1) @ self.llm_VA
        fused_A = alpha * (logits_U.softmax(-1) @ self.plugin_UA) + (1 - alpha) * llm_A
        anchor = int(fused_A.argmax())
        if hparams.keep_own and anchor == llm_A.argmax():
            return own, None
        if hparams.decoder == "owner":
            return int(self.llm_VA[:, anchor].argmax()), anchor
        return self.search(logits_V, fused_A), anchor

    def search(self, logits_V, fused_A):
        hparams = self.hparams
        onehot_A = torch.eye(len(fused_A), dtype=torch.float64)[fused_A.argmax()]
        target_A = fused_A if hparams.target == "soft" else onehot_A
        start_V = logits_V if hparams.init == "llm" else torch.zeros_like(logits_V)
        z_V = start_V.clone().detach().requires_grad_(True)
        optimiser = torch.optim.AdamW([z_V], lr=hparams.search_lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10, eta_min=hparams.search_lr / 4)
        for _ in range(hparams.search_steps):
            optimiser.zero_grad()
            with torch.enable_grad():
                log_q_A = (z_V.softmax(-1) @ self.llm_VA).log()
                torch.nn.functional.kl_div(log_q_A, target_A, reduction="none").mean().backward()
            optimiser.step()
            schedule.step()
        return int(z_V.argmax())


def named(changes):
    return "+".join(map(str, changes)) or "default"


@pytest.mark.parametrize("changes", VARIANTS, ids=named)
def test_teacher_forcing_equals_reading_one_prefix_at_a_time(target, plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    reference = Reference(target, plugin, hparams)
    expected = [
        [reference.step(query, query.target_ids[:j])[0] for j in range(len(query.target_ids))] for query in queries
    ]
    assert EnsembleModel.attach(target, plugin, hparams).teacher_forced(queries) == expected


@pytest.mark.parametrize("changes", VARIANTS, ids=named)
def test_generation_equals_one_step_at_a_time(target, plugin, requests, queries, changes):
    hparams = hparams_with(**changes)
    reference = Reference(target, plugin, hparams)
    expected = []
    for query in queries:
        ids = []
        for _ in query.target_ids:
            ids.append(reference.step(query, ids)[0])
        expected.append(ids)
    assert EnsembleModel.attach(target, plugin, hparams).generate(queries) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha_gate": 0.5}, {"keep_own": True, "per_step_alpha": True}, {"anchors": "bytes", "eos": "pair_special"}],
    ids=named,
)
def test_with_mapped_tokens_the_plugin_reads_its_own_ids_of_the_anchors(target, plugin, requests, queries, changes):
    hparams = hparams_with(sync="map", **changes)
    reference = Reference(target, plugin, hparams)
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
    assert EnsembleModel.attach(target, plugin, hparams).generate(queries) == expected


def test_a_batch_equals_its_questions_one_by_one(target, plugin, requests, queries):
    together = EnsembleModel.attach(target, plugin, hparams_with())
    alone = EnsembleModel.attach(target, plugin, hparams_with())
    assert together.teacher_forced(queries) == [alone.teacher_forced([query])[0] for query in queries]
    assert together.generate(queries) == [alone.generate([query])[0] for query in queries]


def test_a_closed_gate_leaves_the_model_to_itself(target, plugin, requests, queries):
    pair = EnsembleModel.attach(target, plugin, hparams_with(alpha="fixed", alpha_fixed=0.0, alpha_gate=0.5))
    assert pair.teacher_forced(queries) == [own_teacher_forced(target, query) for query in queries]
    assert pair.generate(queries) == [own_generation(target, query) for query in queries]
    assert pair.diagnostics()["gated_share"] == 1.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_target_computes_what_it_computes_unedited_to_the_bit(architecture, plugin, requests):
    """In fp32, where another batch shape could round otherwise and a locality question be lost to it."""
    target = tiny_model(architecture)
    pair = EnsembleModel.attach(target, plugin, hparams_with(alpha="fixed", alpha_fixed=0.0, alpha_gate=0.5))
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


def test_a_llama_pair_answers_its_edits_and_the_target_is_not_touched(plugin, requests):
    target = tiny_model("llama")
    target.model.double()
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    pair = EnsembleModel.attach(target, plugin, hparams_with())
    queries = [joint_query(target.tokenizer, request.prompt, request.target_new) for request in requests]
    answers = [list(query.target_ids) for query in queries]
    assert pair.teacher_forced(queries) == answers
    assert pair.generate(queries) == answers
    pair.revert()
    assert all(value.equal(before[name]) for name, value in target.model.state_dict().items())


def test_diagnostics_tell_edits_from_other_prompts(plugin, requests):
    target = tiny_model("mistral")
    target.model.double()
    pair = EnsembleModel.attach(target, plugin, hparams_with())
    sizes = {"anchors", "vocabulary", "width", "plugin_vocabulary", "plugin_width"}
    assert set(pair.diagnostics()) == sizes
    pair.teacher_forced([joint_query(target.tokenizer, prompt, answer) for prompt, answer in QUESTIONS])
    figures = pair.diagnostics()
    assert figures["alpha_edits_mean"] > 0.7
    assert figures["alpha_others_p10"] <= figures["alpha_others_p50"] <= figures["alpha_others_p90"]
    assert figures["anchors"] == len(pair_anchors(Vocabulary.of(target.tokenizer), Vocabulary.of(plugin.tokenizer)))
    assert sum(figures[f"certified_l{level}_share"] for level in (0, 1, 2)) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for name, value in figures.items() if name not in sizes)


def test_diagnostics_tell_what_the_plugin_was_spared(plugin, requests):
    target = tiny_model("gptj")
    target.model.double()
    pair = EnsembleModel.attach(target, plugin, hparams_with())
    query = joint_query(target.tokenizer, "Paris", "is the capital of France")
    texts = ["Paris", *("Paris" + target.tokenizer.decode(query.target_ids[:n]) for n in range(len(query.target_ids)))]
    alone = [tuple(plugin.tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)]
    beginnings = {ids[:n] for ids in alone for n in range(1, len(ids) + 1)}
    pair.teacher_forced([query])
    assert pair.diagnostics()["packed_share"] == len(beginnings) / sum(map(len, alone))
    pair.generate([query])
    assert pair.diagnostics()["fed_per_token"] > 0.5


def test_no_question_has_no_answer(plugin, requests):
    pair = EnsembleModel.attach(tiny_model("llama"), plugin, hparams_with())
    assert pair.teacher_forced([]) == pair.generate([]) == pair.scope([]) == []


def test_inside_a_character_the_plugin_has_no_say(plugin, requests):
    """GPT-J spells 日 in bytes; after the first of them the text is held back."""
    target = tiny_model("gptj")
    target.model.double()
    pair = EnsembleModel.attach(target, plugin, hparams_with())
    letters = [target.tokenizer.convert_tokens_to_ids(letter) for letter in "ĠæĹ¥"]
    query = Query(
        "東京 is the capital of", "日", tuple(target.tokenizer("東京 is the capital of")["input_ids"]), tuple(letters)
    )
    pair.teacher_forced([query])
    assert pair.diagnostics()["held_back_share"] == 0.5


def test_a_prompt_cut_by_joint_tokenisation_is_spelled_from_its_ids(target, plugin, requests):
    """The target's first id may begin before the prompt ends; the plug-in then reads what stands in front of it."""
    pair = EnsembleModel.attach(target, plugin, hparams_with())
    ids = tuple(target.tokenizer("Björk was born in Reykjavík")["input_ids"])
    prompt = tuple(target.tokenizer("Björk was born")["input_ids"])
    assert ids[: len(prompt)] == prompt
    query = Query("Björk was born in", "Reykjavík", prompt, ids[len(prompt) :])
    assert [transcript.starts_at_prompt for transcript in pair.transcripts([query])] == [False]
    assert [len(ids) for ids in pair.generate([query])] == [len(query.target_ids)]
    assert [len(ids) for ids in pair.teacher_forced([query])] == [len(query.target_ids)]


def test_one_query_may_be_asked_under_both_protocols_in_any_order(target, plugin, requests, queries):
    first = EnsembleModel.attach(target, plugin, hparams_with())
    second = EnsembleModel.attach(target, plugin, hparams_with())
    forced, generated = first.teacher_forced(queries), first.generate(queries)
    assert second.generate(queries) == generated
    assert second.teacher_forced(queries) == forced
