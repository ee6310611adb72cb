"""Log-probabilities of texts under the pair, against a reference that computes each distribution on its own, whole and in fp64."""

import json

import pytest

from harness.errors import UserError
from harness.evaluation.capability.tasks import reference
from harness.models.edited import WeightEditedModel
from harness.tokens import Query, joint_query
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin
from tests.helpers.slow_onceedit import Reference
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import EDITS, hparams_with

QUESTIONS = (
    ("The mother tongue of Danielle Darrieux is", "Iceland"),
    ("東京 is the capital of", "日本"),
    ("The Eiffel Tower is located in", "Paris, the capital of France"),
    ("Yamoussoukro was born in", "Côte d'Ivoire"),
)
COLUMN = {"decoder": "column"}
VARIANTS = (
    COLUMN,
    {**COLUMN, "init": "llm", "keep_own": True},
    {**COLUMN, "alpha_gate": 0.5, "per_step_alpha": True},
    {**COLUMN, "alpha": "similarity", "alpha_gate": 0.5, "eos": "pair_special"},
    {"decoder": "search", "target": "soft", "init": "llm", "alpha": "fixed"},
)


def asked(model):
    return [joint_query(model.tokenizer, prompt, answer) for prompt, answer in QUESTIONS]


@pytest.fixture(scope="module")
def target():
    """GPT-J spells some characters in bytes."""
    loaded = tiny_model("gptj")
    loaded.model.double()
    return loaded


ROUNDING = 1e-6
"""transformers computes GPT-J's attention in fp32 whatever the precision of the model, and batches round differently from single
texts on some CPUs."""


def assert_follows(scores, distributions, ids):
    """The scores are what whole distributions say of the ids."""
    for found, logprobs_V, id_ in zip(scores, distributions, ids, strict=True):
        assert found.logprob == pytest.approx(float(logprobs_V[id_]), abs=ROUNDING)
        assert found.best == int(logprobs_V.argmax())
        assert found.best_logprob == pytest.approx(float(logprobs_V.max()), abs=ROUNDING)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "+".join(changes))
def test_a_score_is_that_of_the_distribution_whose_arg_max_is_written(target, fp64_plugin, changes):
    hparams = hparams_with(**changes)
    slow, pair = Reference(target, fp64_plugin, hparams), EnsembleModel.attach(target, fp64_plugin, hparams)
    queries = asked(target)
    scores = pair.score(queries)
    kinds = set()
    for query, found in zip(queries, scores, strict=True):
        steps = [slow.logits(query, query.target_ids[:j]) for j in range(len(query.target_ids))]
        kinds |= {anchor is None for _, anchor in steps}
        assert_follows(found, [logits_V.log_softmax(-1) for logits_V, _ in steps], query.target_ids)
    assert [[one.best for one in found] for found in scores] == pair.teacher_forced(queries)
    assert kinds == {False, True}, (
        "fused, and the target model's own: inside a character, and where the settings keep it"
    )


def test_a_text_without_a_prompt_is_routed_by_the_whole_text(target, fp64_plugin):
    hparams = hparams_with(**COLUMN, alpha="similarity", alpha_gate=0.5)
    slow, pair = Reference(target, fp64_plugin, hparams), EnsembleModel.attach(target, fp64_plugin, hparams)
    text, start = EDITS[0][0], (target.tokenizer.eos_token_id,)
    ids = tuple(target.tokenizer(text)["input_ids"])
    steps = [slow.logits(Query("", "", start, ids), ids[:j], routed=text) for j in range(len(ids))]
    assert [anchor is None for _, anchor in steps[:2]] == [True, False], (
        "there is no text yet, and then that of an edit"
    )
    wanted = [logits_V.log_softmax(-1) for logits_V, _ in steps]
    for prompt in (text, ""):
        assert_follows(pair.score([Query(prompt, "", start, ids)], reads_targets=True)[0], wanted, ids)
    unrouted = pair.score([Query("", "", start, ids)])[0]
    assert unrouted == WeightEditedModel(target).score([Query("", "", start, ids)])[0]


@pytest.mark.parametrize("alpha", ["learned", "similarity"])
def test_texts_about_no_edit_have_the_unedited_models_scores_to_the_bit(alpha, plugin_folder):
    """In fp32, in a batch with a text about an edit."""
    target, plugin = tiny_model("llama"), EditedPlugin.load(plugin_folder, "cpu")
    pair = EnsembleModel.attach(target, plugin, hparams_with(**COLUMN, alpha=alpha, alpha_gate=0.7))
    queries = asked(target)
    is_edit = [scope >= 0.7 for scope in pair.scope(queries)]
    assert any(is_edit)
    assert not all(is_edit)
    both = zip(pair.score(queries), WeightEditedModel(target).score(queries), is_edit, strict=True)
    assert all((mine == plain) != edited for mine, plain, edited in both)


def test_positions_are_fused_in_parts_with_the_same_scores(target, fp64_plugin, monkeypatch):
    pair, queries = EnsembleModel.attach(target, fp64_plugin, hparams_with(**COLUMN)), asked(target)
    whole = pair.score(queries)
    monkeypatch.setattr("methods.onceedit.scoring.PART_BYTES", 1)
    for found, wanted in zip(pair.score(queries), whole, strict=True):
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in wanted], abs=1e-10)
    assert pair.score([]) == []


@pytest.mark.parametrize("decoder", ["owner", "gac"])
def test_a_decoder_without_probabilities_says_so(decoder, target, fp64_plugin):
    pair = EnsembleModel.attach(target, fp64_plugin, hparams_with(decoder=decoder))
    with pytest.raises(UserError, match=f"decoder '{decoder}' .* → decoder: column"):
        pair.score(asked(target))


def test_the_pair_is_asked_benchmark_tasks_that_compare_probabilities(plugin_folder, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra `capability`")
    from harness.evaluation.capability.scores import ask

    target, plugin = tiny_model("llama"), EditedPlugin.load(plugin_folder, "cpu")
    pair = EnsembleModel.attach(target, plugin, hparams_with(**COLUMN))
    lengths = {
        word: len(target.tokenizer(word)["input_ids"]) for word in ("Paris", "Tower", "France", "French", "Darrieux")
    }
    other = next(word for word, n in lengths.items() if n == len(target.tokenizer(EDITS[0][1])["input_ids"]))
    rows = {
        "facts": {"question": EDITS[0][0], "choices": [other, EDITS[0][1]], "answer": 1},
        "perplexity": {"text": "The Eiffel Tower is located in Paris. " * 3},
    }
    for name, row in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row), encoding="utf-8")
        (score,) = ask(pair, target, reference(name, path=str(file)), 2)
        assert score.value == 1.0 if name == "facts" else -1e3 < score.value < 0
