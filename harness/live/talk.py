"""Ask an edited and the unedited model the same questions, once or in a conversation, and stream both answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from harness.api import EditedModel
from harness.errors import UserError
from harness.live.model import LiveModel
from harness.live.text import Reply
from harness.tokens import chat_text

Write = Callable[[str], None]
Template = Literal["auto", "chat", "none"]
"""How turns become a prompt: with the tokenizer's chat template, as one text, or with a template if there is one."""

WIDTH = 10
"""Width of the names before the answers."""


@dataclass
class Conversation:
    """The conversation with one side.

    Attributes:
        side: what answers.
        is_chat: whether turns go through the tokenizer's chat template; otherwise they are one text, a line each.
        turns: role and content, alternately from the user and from the assistant.
        asked: the prompt of the last answer.
    """

    live: LiveModel
    side: EditedModel
    is_chat: bool
    turns: list[dict[str, str]] = field(default_factory=list)
    asked: str = ""

    @property
    def prompt(self) -> str:
        """All turns as a prompt.

        Raises:
            UserError: if the chat template refuses them.
        """
        if self.is_chat:
            try:
                return chat_text(self.live.model.tokenizer, self.turns)
            except ValueError as error:
                raise UserError(str(error), fix="--template none") from None
        ends = {"user": " ", "assistant": "\n"}
        return "".join(f"{turn['content']}{ends[turn['role']]}" for turn in self.turns).rstrip()

    def ask(self, text: str, max_tokens: int, write: Write) -> Reply:
        """Send a message and get the answer, which becomes part of the conversation.

        Raises:
            UserError: as `LiveModel.reply`, or if the chat template refuses the turns; the conversation is as before then.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            self.asked, stop = self.prompt, () if self.is_chat else ("\n",)
            reply = self.live.reply(self.side, self.asked, max_tokens, stop, write)
        except UserError:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": reply.text})
        return reply


class SideBySide:
    """A conversation with both sides: each gets the same messages from the user, but only its own answers.

    Args:
        live: the edited model.
        template: see `Template`.
        max_tokens: longest answer in tokens.

    Raises:
        UserError: if there is no chat template although it is asked for.
    """

    def __init__(self, live: LiveModel, template: Template, max_tokens: int) -> None:
        has_template = bool(live.model.tokenizer.chat_template)
        if template == "chat" and not has_template:
            raise UserError(f"the tokenizer of {live.origin.model.name} has no chat template", fix="--template none")
        self.is_chat = has_template and template != "none"
        self._live, self._max_tokens = live, max_tokens
        sides = {"unedited": live.unedited, "edited": live.edited}
        self._sides = {name: Conversation(live, side, self.is_chat) for name, side in sides.items() if side is not None}

    def ask(self, text: str, write: Write) -> None:
        """Print both answers and, if the method routes by prompt, the routing score.

        Raises:
            UserError: as `Conversation.ask`; both conversations are as before then.
        """
        turns = len(self._sides["edited"].turns)
        for name, conversation in self._sides.items():
            write(f"{name:<{WIDTH}}")
            try:
                conversation.ask(text, self._max_tokens, lambda part: write(_indented(part)))
            except UserError:
                for each in self._sides.values():
                    del each.turns[turns:]
                raise
            write("\n")
        if (routing := self._live.routing(self._sides["edited"].asked)) is not None:
            write(f"{'routing':<{WIDTH}}{routing:.2f}\n")


def talk(live: LiveModel, lines: Iterator[str], template: Template, max_tokens: int, write: Write) -> None:
    """Answer line after line until the input ends; a line that cannot be answered gets an error message and changes nothing."""
    both = SideBySide(live, template, max_tokens)
    how = "the model's chat template" if both.is_chat else "no template, the lines and answers so far are one text"
    write(f"{live.origin.title}; {how}; an empty line starts over\n")
    for line in lines:
        if not line.strip():
            both = SideBySide(live, template, max_tokens)
            write("new conversation\n")
            continue
        try:
            both.ask(line.strip(), write)
        except UserError as error:
            write(f"{error}\n")


def _indented(part: str) -> str:
    """Further lines below the first, right of the names."""
    return part.replace("\n", "\n" + " " * WIDTH)
