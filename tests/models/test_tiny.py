"""Tiny models: their tokenizers, the masks that localise recall, and one small model trained and opened up."""

import dataclasses
import json
from itertools import pairwise

import pytest
import torch

from harness.data.load import load, resolve
from harness.errors import UserError
from harness.models.catalogue import entry, reference
from harness.models.tiny import recipe, training
from harness.models.tiny.corpus import Fact, verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.models.tiny.training import FactRow, encode, shaped_masks
from harness.store.store import Store
from harness.tokens import joint_query
from tests.helpers.in_process import build, quiet_context

KINDS = ("metaspace", "bytes")
HIDDEN = torch.finfo(torch.float32).min


@pytest.fixture(scope="module")
def facts():
    return verbalise(load(resolve("counterfact", "synthetic", 8, train=16, strip_distractor=True)))


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, facts):
    return train_tokenizer(request.param, 420, facts, boost=1)


def test_masks_are_those_of_an_obvious_loop():
    rows = [FactRow((5,) * 9, 7, 2, 4), FactRow((5,) * 6, 5, 0, 0), FactRow((5,) * 7, 5), FactRow((5,) * 8, 6, 1, 3)]
    shaped, length = [True, True, True, False], 9
    lower, upper = shaped_masks(rows, shaped, length)
    assert lower.shape == upper.shape == (4, 1, length, length)
    for index, (row, is_shaped) in enumerate(zip(rows, shaped, strict=True)):
        for query in range(length):
            for key in range(length):
                is_subject = row.first >= 0 and row.first <= key <= row.last
                is_after = row.first >= 0 and query > row.last
                sees = key <= query
                sees_lower = sees and not (is_shaped and is_after and is_subject)
                sees_upper = sees and not (is_shaped and is_after and is_subject and key != row.last)
                assert lower[index, 0, query, key] == (0 if sees_lower else HIDDEN)
                assert upper[index, 0, query, key] == (0 if sees_upper else HIDDEN)


def test_a_row_knows_where_answer_and_subject_are(tokenizer, facts):
    assert any(len(encode(tokenizer, fact).ids) - encode(tokenizer, fact).answer > 2 for fact in facts)
    for fact in [fact for fact in facts if fact.subject][:200]:
        row = encode(tokenizer, fact)
        assert row.ids[-1] == tokenizer.eos_token_id
        query = joint_query(tokenizer, fact.prompt, fact.answer)
        assert row.ids[:-1] == query.prompt_ids + query.target_ids
        assert row.answer == len(query.prompt_ids)
        assert tokenizer.decode(row.ids[row.answer : -1]).strip() == fact.answer
        assert 0 <= row.first <= row.last < row.answer
        named = tokenizer.decode(row.ids[row.first : row.last + 1])
        assert fact.subject in named
        if tokenizer.convert_ids_to_tokens(row.ids[row.first]) != "▁":  # at the start of a text it may stand alone
            assert fact.subject not in tokenizer.decode(row.ids[row.first + 1 : row.last + 1])
        assert fact.subject not in tokenizer.decode(row.ids[row.first : row.last])


def test_a_fact_without_a_subject_has_no_span(tokenizer):
    row = encode(tokenizer, Fact("It rains in", "May"))
    assert (row.first, row.last) == (-1, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_same_each_time(kind, facts):
    first, second = (train_tokenizer(kind, 700, facts, boost=4) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert (
        first.backend_tokenizer.to_str() != train_tokenizer(kind, 700, facts[:-100], boost=4).backend_tokenizer.to_str()
    )


@pytest.mark.parametrize("text", ["Zürich 東京 🙂", "a  b", "tab\tand\nline", "�", "Ġ▁ <s>"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids or "<s>" in text
    if "<s>" not in text:
        assert tokenizer.decode(ids).strip() == text.strip().replace("▁", " ")


def test_letters_outside_the_corpus_fall_back_to_bytes(facts):
    tokenizer = train_tokenizer("metaspace", 700, facts, boost=4)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("東", add_special_tokens=False)["input_ids"])
    assert tokens[-3:] == ["<0xE6>", "<0x9D>", "<0xB1>"]


def test_only_the_kind_with_words_starts_with_bos(facts):
    for kind, has_bos in (("metaspace", True), ("bytes", False)):
        tokenizer = train_tokenizer(kind, 700, facts, boost=4)
        assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) == has_bos
        assert len(tokenizer) <= 700


def test_a_boost_makes_answers_shorter(facts):
    def length(boost):
        tokenizer = train_tokenizer("metaspace", 700, facts, boost=boost)
        return sum(len(joint_query(tokenizer, fact.prompt, fact.answer).target_ids) for fact in facts)

    assert length(8) < length(0)


def test_the_artifact_is_keyed_by_what_the_model_learns_and_how(monkeypatch):
    data = resolve("counterfact", "synthetic", 8, train=8)
    spec = recipe.artifact(reference("tiny/llama", corpus=data))
    other_data = resolve("counterfact", "synthetic", 9, train=8)
    keys = {
        spec.key,
        recipe.artifact(reference("tiny/llama", corpus=other_data)).key,
        recipe.artifact(reference("tiny/gptj", corpus=data)).key,
    }
    monkeypatch.setitem(recipe.TRAINING, "steps", 1)
    keys.add(recipe.artifact(reference("tiny/llama", corpus=data)).key)
    assert len(keys) == 4
    with pytest.raises(ValueError, match="not a tiny model with a corpus"):
        recipe.artifact(reference("llama2-7b", weights="random"))


@dataclasses.dataclass
class Trained:
    """A tiny model and the facts that it was trained on."""

    model: object
    data: object
    facts: list
    accuracy: float
    folder: object


@pytest.fixture(scope="module", params=["tiny/llama", "tiny/gptj"])
def trained(request, tmp_path_factory):
    """A tiny model on few records, in half the steps of a real one."""
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("store"))
    context = quiet_context(store)
    ref = reference(request.param, corpus=resolve("counterfact", "synthetic", 20, train=0, strip_distractor=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "TRAINING", {**recipe.TRAINING, "steps": 240})
        spec = recipe.artifact(ref)
        build(store, context, [spec])
        folder = context.artifact(spec)
        model = context.load_model(ref)
    data = context.load_data(ref.corpus)
    report = json.loads((folder / "training.json").read_text())
    return Trained(model, data, verbalise(data), report["accuracy"], folder)


@pytest.mark.slow
def test_a_tiny_model_knows_its_facts_before_any_edit(trained):
    assert trained.accuracy >= 0.95
    right = sum(answer(trained.model, e.prompt, e.ground_truth) == "true" for e in trained.data.edits)
    assert right >= 0.95 * len(trained.data.edits)


@pytest.mark.slow
def test_recall_is_localised_at_the_last_token_of_the_subject(trained):
    """Interchange intervention (Meng et al. 2022): one residual vector, taken from the run on another subject, brings
    its answer along. Patched one token later after the first block, where no fact has arrived yet, it does not.
    """
    pairs = list(interchangeable(trained))
    assert len(pairs) >= 30
    flipped = sum(patched(trained.model, *pair, layer=1) for pair in pairs) / len(pairs)
    elsewhere = sum(patched(trained.model, *pair, layer=0, offset=1) for pair in pairs) / len(pairs)
    print(f"{trained.model.ref.name}: flipped {flipped:.2f}, elsewhere {elsewhere:.2f}, pairs {len(pairs)}")
    assert flipped >= 0.6
    assert elsewhere <= 0.2


def answer(model, prompt, truth):
    """`true` if the first id of the true answer is the model's own."""
    query = joint_query(model.tokenizer, prompt, truth)
    with torch.no_grad():
        logits_V = model.model(input_ids=torch.tensor([query.prompt_ids])).logits[0, -1]
    return "true" if int(logits_V.argmax()) == query.target_ids[0] else "false"


def interchangeable(trained):
    """Pairs of facts in the same words about different subjects, with different first ids, both known."""
    by_template = {}
    for fact in trained.facts:
        if fact.subject and answer(trained.model, fact.prompt, fact.answer) == "true":
            template = fact.prompt.replace(fact.subject, "{}")
            by_template.setdefault(template, []).append((fact, encode(trained.model.tokenizer, fact)))
    count = 0
    for group in by_template.values():
        for left, right in pairwise(group):
            ids = [row.ids[row.answer] for _, row in (left, right)]
            if ids[0] != ids[1] and count < 100:
                count += 1
                yield left[1], right[1]


@torch.no_grad()
def patched(model, row, source, layer, offset=0):
    """Whether the residual stream after a block, taken from `source`'s subject, makes `row` say `source`'s answer."""
    kept = {}

    def keep(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        kept["vector"] = hidden[0, source.last + offset].clone()

    def put(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[0, row.last + offset] = kept["vector"]
        return output

    block = model.block(layer)
    for hook, which in ((keep, source), (put, row)):
        handle = block.register_forward_hook(hook)
        logits_V = model.model(input_ids=torch.tensor([which.ids[: which.answer]]), use_cache=False).logits[0, -1]
        handle.remove()
    return int(logits_V.argmax()) == source.ids[source.answer]


def test_a_fact_longer_than_the_context_is_refused_before_training():
    shape = entry("tiny/gptj").spec
    fact = Fact("word " * 300, "end", "")
    row = FactRow((1,) * 302, 300)

    with pytest.raises(UserError, match=r"text of 302 tokens \('word word .* but the model has 256 positions"):
        training._check_lengths([fact], [row], shape)
