"""Text that is followed while it is written: stop texts, half characters, the end of text."""

import pytest

from harness.api import EditedModel
from harness.errors import UserError
from harness.live.text import continued
from tests.helpers.tiny_models import tiny_model


class Dictated(EditedModel):
    def __init__(self, ids):
        self.ids = ids

    def teacher_forced(self, queries):
        raise NotImplementedError

    def generate(self, queries):
        return [(self.ids + [self.ids[-1]] * len(query.target_ids))[: len(query.target_ids)] for query in queries]


@pytest.fixture(scope="module", params=["gptj", "llama"])
def model(request):
    return tiny_model(request.param)


def written(model, text, limit=60, stop=("\n",), end=True):
    ids = model.tokenizer(f"Paris{text}", add_special_tokens=False)["input_ids"]
    skipped = len(model.tokenizer("Paris", add_special_tokens=False)["input_ids"])
    ids = [*ids[skipped:], *([model.tokenizer.eos_token_id] if end else [])]
    parts = []
    reply = continued(Dictated(ids), model, "Paris", limit, stop, parts.append)
    assert "".join(parts).rstrip() == reply.text
    return reply, parts


def test_an_answer_ends_at_the_end_of_text_and_comes_in_parts(model):
    reply, parts = written(model, " is located in France")
    assert (reply.text, reply.finish) == ("is located in France", "stop")
    assert reply.continuation == " is located in France"
    assert len(parts) > 1
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_a_stop_text_is_neither_shown_nor_begun(model):
    reply, parts = written(model, " is located in France", stop=("in Fr",))
    assert (reply.text, reply.finish) == ("is located", "stop")
    assert reply.continuation == " is located "
    assert "in F" not in "".join(parts)


def test_a_limit_is_no_end(model):
    reply, _ = written(model, " is located in France", limit=2, end=False)
    assert (len(reply.ids), reply.finish) == (2, "length")


@pytest.mark.parametrize("many", [False, True])
def test_what_the_models_generation_settings_name_ends_an_answer(many):
    model = tiny_model("llama")
    (id_,) = model.tokenizer.convert_tokens_to_ids(["c"])
    model.model.generation_config.eos_token_id = [2, id_] if many else id_
    reply = continued(Dictated([5, 6, id_, 7]), model, "Paris", 8)
    assert (len(reply.ids), reply.finish) == (3, "stop")


def test_characters_of_several_tokens_are_shown_whole():
    reply, parts = written(tiny_model("gptj"), " is 東京")
    assert reply.text == "is 東京"
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_a_prompt_without_room_is_refused(model):
    with pytest.raises(UserError, match="positions"):
        continued(Dictated([5]), model, "Paris " * 5000, 4)
