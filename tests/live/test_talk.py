"""A conversation with both sides: what each has read, and what a refused message leaves behind."""

import pytest

from harness.errors import UserError
from harness.live.model import LiveModel
from harness.live.talk import SideBySide
from harness.models.edited import WeightEditedModel
from tests.helpers.tiny_models import tiny_model

TEMPLATE = """{% for m in messages %}{% if 'secret' in m['content'] %}{{ raise_exception('no secrets') }}{% endif %}\
{{ m['content'] }} {% endfor %}"""


class Refusing(WeightEditedModel):
    """A model that refuses prompts about Björk."""

    def generate_until(self, queries, ends):
        if any("Björk" in query.prompt for query in queries):
            raise UserError("not about Björk")
        return super().generate_until(queries, ends)


@pytest.fixture
def both():
    model = tiny_model("llama")
    model.tokenizer.chat_template = TEMPLATE
    yield SideBySide(LiveModel(model, Refusing(model), WeightEditedModel(model), origin=None), "auto", 3)
    model.tokenizer.chat_template = None


def turns(both):
    return {name: [turn["role"] for turn in conversation.turns] for name, conversation in both._sides.items()}


@pytest.mark.parametrize(("text", "complaint"), [("a secret", "no secrets"), ("Björk", "not about Björk")])
def test_a_message_that_one_side_refuses_is_in_neither_conversation(both, text, complaint):
    both.ask("Paris", lambda part: None)
    before = turns(both)
    with pytest.raises(UserError, match=complaint):
        both.ask(text, lambda part: None)
    assert turns(both) == before == {name: ["user", "assistant"] for name in ("unedited", "edited")}
    both.ask("France", lambda part: None)
    assert turns(both)["unedited"] == turns(both)["edited"] == ["user", "assistant"] * 2
