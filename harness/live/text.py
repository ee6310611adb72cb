"""Generate text from a prompt, streamed, up to an end-of-text token or a stop text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.api import EditedModel
from harness.errors import UserError
from harness.models.loaded import LoadedModel
from harness.tokens import Query, open_query

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers show for the first bytes of a character."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        continuation: what follows the prompt, with the spaces around it and without the stop text.
        ids: every id that was generated.
        finish: `stop` if it ended by itself, `length` if it reached the limit.
        prompt_ids: number of ids of the prompt.
    """

    continuation: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    prompt_ids: int

    @property
    def text(self) -> str:
        """The answer without the spaces around it."""
        return self.continuation.strip()


def continued(
    side: EditedModel,
    model: LoadedModel,
    prompt: str,
    max_tokens: int,
    stop: Sequence[str] = (),
    write: Callable[[str], None] | None = None,
) -> Reply:
    """Continue a prompt greedily.

    Args:
        side: what answers.
        model: its tokenizer and context length.
        prompt: the text.
        max_tokens: longest answer in tokens.
        stop: texts before which the answer ends.
        write: gets each new part of the text once it is certain.

    Raises:
        UserError: if the prompt is empty or leaves no room for an answer.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty", fix="a prompt with at least one word")
    return replied(side, model, [open_query(model.tokenizer, prompt, max_tokens)], stop, write)[0]


def replied(
    side: EditedModel,
    model: LoadedModel,
    queries: Sequence[Query],
    stop: Sequence[str] = (),
    write: Callable[[str], None] | None = None,
) -> list[Reply]:
    """Continue prompts in one batch, each by at most as many ids as its target has and as the model has positions left.

    Args:
        side, model, stop: as for `continued`.
        queries: from `harness.tokens.open_query`.
        write: gets the text of the first row as it is written.

    Raises:
        UserError: if a prompt leaves no room for an answer.
    """
    fitted = [_fitted(query, model) for query in queries]
    writers = [write, *[None] * (len(fitted) - 1)]
    followers = [Follower(model, query.prompt_ids, stop, each) for query, each in zip(fitted, writers, strict=True)]
    made = side.generate_until(fitted, lambda row, id_: followers[row].ends(id_))
    return [
        Reply(follower.finish(), tuple(ids), "stop" if follower.has_ended else "length", len(query.prompt_ids))
        for follower, ids, query in zip(followers, made, fitted, strict=True)
    ]


def _fitted(query: Query, model: LoadedModel) -> Query:
    """A query that does not go beyond the model's positions."""
    room = model.positions - len(query.prompt_ids)
    if room < 1:
        raise UserError(
            f"the prompt has {len(query.prompt_ids):,} tokens, but {model.ref.name} has {model.positions:,} positions",
            fix="a shorter prompt",
        )
    return replace(query, target_ids=query.target_ids[:room])


class Follower:
    """Turns ids into text one by one, and detects the end of the text."""

    def __init__(
        self, model: LoadedModel, prompt_ids: Sequence[int], stop: Sequence[str], write: Callable[[str], None] | None
    ) -> None:
        self.has_ended = False
        self._tokenizer, self._ends = model.tokenizer, model.end_ids
        self._stop, self._write = [text for text in stop if text], write or (lambda text: None)
        self._ids, self._start = list(prompt_ids), len(self._decoded(prompt_ids))
        self._text, self._written = "", 0

    def ends(self, id_: int) -> bool:
        """Take the next id; whether it is the last."""
        if id_ in self._ends:
            self.has_ended = True
        else:
            self._ids.append(id_)
            self._text = self._decoded(self._ids)[self._start :]
            begin = len(self._text) - len(self._text.lstrip())
            places = [place for stop in self._stop if (place := self._text.find(stop, begin)) >= 0]
            if places:
                self.has_ended = True
                self._text = self._text[: min(places)]
        if not self.has_ended and not self._text.endswith((_UNFINISHED, *self._stop_starts())):
            self._flush()
        return self.has_ended

    def finish(self) -> str:
        """Write the text held back so far, and return the whole text as it follows the prompt."""
        self._flush()
        return self._text

    def _flush(self) -> None:
        text = self._text.lstrip()
        if len(text) > self._written:
            self._write(text[self._written :])
            self._written = len(text)

    def _stop_starts(self) -> tuple[str, ...]:
        """What a text may end with that is the beginning of a stop text."""
        return tuple(stop[:length] for stop in self._stop for length in range(1, len(stop)))

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
