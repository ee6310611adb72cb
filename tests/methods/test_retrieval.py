"""Retrieval: the nearest edit is read first, prompts that resemble none are untouched, and a memory goes on from its state."""

import json
from dataclasses import replace

import pytest
import torch

from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.records import EditRecord, Probe
from harness.tokens import joint_query
from methods.retrieval import Ike, IkeHparams, Retrieval, RetrievalHparams
from methods.retrieval.demonstrations import FILE, KINDS, _written
from tests.helpers.slow_similarity import similarity
from tests.helpers.tiny_edits import Context, queries_of, requests_of, three_layers

FACTS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("The capital of France is", "Yamoussoukro"),
    ("Björk was born in", "Reykjavík"),
]
OTHERS = [("東京 is the capital of", "日本"), ("What was Paris?", "Iceland")]


def retrieval(**changes):
    values = {"nearest": 1, "threshold": 0.9, "similarity_subject": 0.67, "form": "fact", "fact_tokens": 64}
    return Retrieval(RetrievalHparams(**values | changes))


def edit(model, facts=FACTS, **changes):
    return retrieval(**changes).edit(model, requests_of(facts), {}, Context())


@pytest.fixture(scope="module", params=["llama", "gptj"])
def model(request):
    return three_layers(request.param)


def by_hand(model, texts, prompt, target, before=""):
    """The ids of a text that states edits before a prompt, its own special tokens in front, and the target's."""
    query = joint_query(model.tokenizer, prompt, target)
    bare = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*texts, before + prompt)]
    special = [] if model.spec.architecture == "gptj" else [model.tokenizer.bos_token_id]
    return special + [token for row in bare for token in row], query.target_ids


def test_the_nearest_edit_is_read_before_the_prompt(model):
    edited = edit(model)
    for prompt, target in FACTS:
        ids, target_ids = by_hand(model, [f"{prompt} {target}\n"], prompt, target)
        with torch.no_grad():
            logits_TV = model.model(input_ids=torch.tensor([[*ids, *target_ids[:-1]]])).logits[0]
        expected = logits_TV[len(ids) - 1 :].argmax(-1).tolist()
        assert edited.teacher_forced(queries_of(model, [(prompt, target)])) == [expected]


def test_several_edits_are_read_the_nearest_one_last(model):
    edited, (prompt, target) = edit(model, nearest=2, threshold=-1.0, form="new_fact"), FACTS[1]
    scores = [similarity_of(model, [fact], prompt) for fact, _ in FACTS]
    second = max((score, n) for n, score in enumerate(scores) if n != 1)[1]
    ids, _ = by_hand(model, [f"New Fact: {' '.join(FACTS[n])}\n" for n in (second, 1)], prompt, target, "Prompt: ")
    (query,) = queries_of(model, [(prompt, target)])
    assert list(edited._read(query).prompt_ids) == ids


class _AsPlugin:
    """What the slow similarity asks of a plug-in, for a model without a token of its own."""

    def __init__(self, model):
        self.model, self.tokenizer, self.weight_id = model.model, model.tokenizer, len(model.embeddings.weight)


def similarity_of(model, prompts, prompt, subject_share=0.67):
    return similarity(_AsPlugin(model), [(each, "") for each in prompts], prompt, subject_share)


def test_scope_is_the_similarity_to_the_nearest_edit(model):
    edited, questions = edit(model), [*FACTS, *OTHERS]
    expected = [max(0.0, similarity_of(model, [fact for fact, _ in FACTS], prompt)) for prompt, _ in questions]
    assert edited.scope(queries_of(model, questions)) == pytest.approx(expected, abs=1e-5)


def test_prompts_that_resemble_no_edit_are_answered_by_the_unedited_model(model):
    queries = queries_of(model, OTHERS)
    assert max(edit(model).scope(queries)) < 0.9
    plain, edited = WeightEditedModel(model), edit(model)
    assert edited.teacher_forced(queries) == plain.teacher_forced(queries)
    assert edited.generate(queries) == plain.generate(queries)


def test_a_memory_goes_on_from_its_state(model):
    whole, first = edit(model), edit(model, FACTS[:1])
    second = retrieval().extend(model, first.state(), requests_of(FACTS[1:]), {}, Context())
    assert whole.state().keys() == second.state().keys()
    assert all(torch.equal(value, second.state()[name]) for name, value in whole.state().items())
    again = retrieval().extend(model, whole.state(), [], {}, Context())
    queries = queries_of(model, FACTS)
    assert again.generate(queries) == whole.generate(queries) == second.generate(queries)
    assert again.diagnostics() == {"facts": 3.0, "threshold": 0.9}


def test_an_edit_that_is_too_long_is_refused_by_name(model):
    with pytest.raises(UserError, match=r"^record 0: stated as a fact it has \d+ tokens, more than 3") as caught:
        edit(model, fact_tokens=3)
    edit(model, FACTS[:1], fact_tokens=int(caught.value.fix.removeprefix("fact_tokens: ")))


def test_ike_shows_what_a_new_fact_changes_and_what_it_leaves_alone(model, tmp_path):
    records = [
        EditRecord(
            str(n),
            f"{word} is in",
            "",
            f"target{n}",
            "",
            rephrases=(f"Rephrase {n} is in",),
            locality=(Probe(f"Other {n} is in", f"answer{n}"),),
        )
        for n, word in enumerate(("Paris", "Tower", "Björk", "capital", "mother", "Iceland", "France", "日本"))
    ]
    assert len(records) == len(KINDS)
    written = list(_written(records))
    asked = [each["text"].splitlines()[1].split()[1] for each in written]
    assert asked == ["Paris"] + 3 * ["Rephrase"] + 4 * ["Other"]
    assert written[1]["text"] == "New Fact: Tower is in target1\nPrompt: Rephrase 1 is in target1\n\n"
    unknown = [replace(record, locality=(replace(record.locality[0], has_answer=False),)) for record in records]
    asked = [each["text"].splitlines()[1] for each in _written(unknown)]
    assert asked[1:] == [f"Prompt: Rephrase {n} is in target{n}" for n in range(1, len(KINDS))], "only what is true"
    partly = [
        replace(bare, locality=bare.locality + full.locality) for bare, full in zip(unknown, records, strict=True)
    ]
    assert list(_written(partly)) == written
    (tmp_path / FILE).write_text(json.dumps(written))
    values = {"threshold": -1.0, "form": "new_fact", "demonstrations": 2, "demonstration_tokens": 200}
    ike = Ike(IkeHparams(**retrieval().hparams.model_dump() | values))
    edited = ike.edit(model, requests_of(FACTS), {"demonstrations": tmp_path}, Context())
    prompt, target = FACTS[2]
    scores = [similarity_of(model, [each["prompt"]], prompt) for each in written]
    near = sorted(range(len(written)), key=lambda n: scores[n])[-2:]
    texts = [*(written[n]["text"] for n in near), f"New Fact: {prompt} {target}\n"]
    (query,) = queries_of(model, [(prompt, target)])
    assert list(edited._read(query).prompt_ids) == by_hand(model, texts, prompt, target, "Prompt: ")[0]
