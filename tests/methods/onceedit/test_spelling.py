"""Answers in the target model's own tokens, against a reference that writes and tokenises one answer at a time."""

import pytest

from harness.tokens import Query, joint_query
from methods.onceedit.edit_stage import build
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.spelling import FURTHER, PIECES, Spelling
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.slow_onceedit import Reference
from tests.helpers.slow_protocols import generate as own_generation
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import EDITS, FakeContext, hparams_with


def target_of(architecture):
    loaded = tiny_model(architecture)
    loaded.model.double()
    return loaded


def in_pieces(target, text):
    """One id per byte, as a plug-in without longer tokens would have it written."""
    vocabulary = Vocabulary.of(target.tokenizer)
    by_bytes = {piece: id_ for id_, piece in vocabulary.text_bytes.items()}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def spelling_of(target, plugin, *questions):
    queries = [joint_query(target.tokenizer, *question) for question in questions]
    return Spelling(EnsembleModel.attach(target, plugin, hparams_with()), queries), queries


def test_a_word_written_in_pieces_is_the_word(fp64_plugin):
    target = target_of("gptj")
    spelling, (query,) = spelling_of(target, fp64_plugin, ("Björk was born in", "Paris, the capital"))
    written = in_pieces(target, " Paris, the capital of")
    assert len(written) > len(query.target_ids)
    assert spelling.own(0, written) == list(query.target_ids)
    other = in_pieces(target, " Paris, the tongue of")
    assert spelling.own(0, other) != list(query.target_ids)
    assert spelling.own(0, other)[:3] == list(query.target_ids)[:3]


def test_an_answer_goes_on_until_its_last_word_is_over(fp64_plugin):
    target = target_of("gptj")
    spelling, (query,) = spelling_of(target, fp64_plugin, ("Björk was born in", "Paris"))
    (space,), stop = in_pieces(target, " "), target.tokenizer.convert_tokens_to_ids("</s>")
    written = in_pieces(target, " Paris")
    assert len(query.target_ids) < len(written)
    assert not any(spelling.ends(0, written[:n], True) for n in range(1, len(written) + 1))
    assert spelling.ends(0, [*written, space], True)
    assert spelling.ends(0, [*written, stop], True)
    assert not spelling.ends(0, [*written, *in_pieces(target, "i")], True)


def test_what_the_target_model_writes_by_itself_is_as_long_as_the_target(fp64_plugin):
    target = target_of("gptj")
    spelling, (query,) = spelling_of(target, fp64_plugin, ("Björk was born in", "Paris, the capital"))
    written, wanted = in_pieces(target, " Paris"), len(query.target_ids)
    assert [spelling.ends(0, written[:n], False) for n in range(1, wanted + 1)] == [False] * (wanted - 1) + [True]


def test_what_has_no_spelling_of_its_own_is_left_to_the_chosen_tokens(fp64_plugin):
    target = target_of("gptj")
    spelling, (query,) = spelling_of(target, fp64_plugin, ("東京 is the capital of", "日本"))
    inside = in_pieces(target, " 日本")[:-1]
    assert spelling.own(0, inside) is None, "inside a character"
    assert spelling.answer(0, inside) == inside[: len(query.target_ids)]


def test_an_answer_whose_text_is_over_at_once_is_as_long_as_its_target(fp64_plugin):
    target = target_of("gptj")
    spelling, (query,) = spelling_of(target, fp64_plugin, ("東京 is the capital of", "日本"))
    stop, wanted = target.tokenizer.convert_tokens_to_ids("</s>"), len(query.target_ids)
    assert [spelling.ends(0, [stop] * n, True) for n in range(1, wanted + 1)] == [False] * (wanted - 1) + [True]
    assert spelling.answer(0, [stop] * 9) == [stop] * wanted


class OfPieces(FakeContext):
    """Lends a plug-in whose tokens are shorter than those of the other tiny models."""

    def load_model(self, ref):
        return self.models.setdefault(ref, tiny_model("gptj", seed=7))


@pytest.fixture(scope="module")
def plugin_of_pieces(data, plugin_spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    build(plugin_spec, OfPieces(data), folder)
    loaded = EditedPlugin.load(folder, "cpu")
    loaded.model.double()
    return loaded


@pytest.mark.parametrize("decode", ["exact", "speculative"])
def test_answers_equal_those_written_one_by_one(decode, plugin_of_pieces):
    target, plugin = target_of("llama"), plugin_of_pieces
    hparams = hparams_with(decode=decode, alpha="fixed", alpha_fixed=0.7, eos="pair_special")
    pair, reference = EnsembleModel.attach(target, plugin, hparams), Reference(target, plugin, hparams)
    queries = [joint_query(target.tokenizer, *edit) for edit in EDITS]
    assert pair.generate(queries) == [slowly(target, reference, query) for query in queries]
    assert pair.diagnostics()["respelled_share"] > 0


def slowly(target, reference, query: Query):
    wanted, text_of = len(query.target_ids), Vocabulary.of(target.tokenizer).text_bytes
    limit, chosen = PIECES * wanted + FURTHER, []
    while len(chosen) < limit:
        chosen.append(reference.step(query, chosen)[0])
        if len(chosen) == wanted and chosen == own_generation(target, query):
            return chosen
        ids = list(chosen)
        n_text = next((n for n, id_ in enumerate(ids) if not text_of[id_]), len(ids))
        if n_text == len(ids) < limit:
            if not text_of[ids[-1]].startswith(b" "):
                continue
            ids, n_text = ids[:-1], n_text - 1
        own = [*respelled(target, reference, query, ids[:n_text]), *ids[n_text:]]
        if len(own) >= wanted:
            return own[:wanted]
    return chosen[:wanted]


def respelled(target, reference, query, ids):
    """The tokens of the text behind the prompt; none inside a character and where they do not follow the prompt's."""
    text, started = reference.text(query, ids)
    whole, n = target.tokenizer(text)["input_ids"], len(query.prompt_ids)
    return whole[n:] if not started and tuple(whole[:n]) == query.prompt_ids else []
