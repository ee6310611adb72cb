"""Protocols under which a model answers as in practice: it writes freely and stops by itself.

Teacher forcing gives a model the words of the answer, and generation as long as the target gives it their number. Both leaks
raise scores (Yang et al. 2025, "The Mirage of Model Editing", arXiv 2502.11177). Here an answer ends at a special token, at the
end of a line, or at a limit that is the same for all questions, and it is compared as words.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError
from harness.evaluation.probes import ProbeQuery
from harness.evaluation.protocol import Protocol
from harness.evaluation.words import answer_of, contains, exact_match, f1, is_short
from harness.records import Answer
from harness.registry import register_protocol
from harness.tokens import Query, chat_text, end_ids, line_end_ids, open_query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import EditedModel

LIMIT = 40
"""Maximum length of an answer in ids; also for conversations, because the targets are names and short phrases."""

INSTRUCTION = "Answer the question or complete the sentence in as few words as possible.\n{}"
"""Instruction of `natural_instruct`. The prompt comes last, so that a base model continues it as it would without one."""

DISTRACTIONS = (
    "The library opens at nine on weekdays.",
    "Most of the snow had melted by the end of the week.",
    "He bought two tickets for the evening show.",
    "The recipe takes about forty minutes.",
)
"""Sentences of `natural_distracted`. They name no person or place, so none of them answers a question."""

THOUGHT_LIMIT = 100
"""Maximum length of a chain of thought with its answer, in ids."""

THOUGHT = """\
Question: On which continent is the country of the Eiffel Tower?
Thoughts: The Eiffel Tower is in France. France is in Europe.
Answer: Europe

Question: {}
Thoughts:"""
"""Example of `natural_thought`: one question in the expected form, also for base models (Wei et al. 2022, arXiv 2201.11903)."""


@register_protocol
class Natural(Protocol):
    """Free generation from the prompt alone; the words of the first line are scored.

    Class attributes:
        lines: lines that a model may write.
        frame: text around every prompt.
    """

    lines: ClassVar[int] = 1
    frame: ClassVar[str] = "{}"

    name: ClassVar[str] = "natural"
    title: ClassVar[str] = "natural"
    version: ClassVar[int] = 4
    key: ClassVar[str] = name

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Tokenise the prompts as they are; targets are ignored."""
        return _open(tokenizer, pairs, str, line_end_ids(tokenizer))

    @classmethod
    def question(cls, prompt: str) -> str:
        """Find the dataset's prompt in the text that a model has read; what a chat template adds after it remains."""
        before, _, after = cls.frame.partition("{}")
        return (prompt.rpartition(before)[2] if before else prompt).removesuffix(after)

    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """Generate until an end id, the end of the last line (empty ones do not count) or the limit; the last id is included."""
        has_begun, written = [False] * len(queries), [0] * len(queries)

        def ends(row: int, id_: int) -> bool:
            is_break = id_ in queries[row].line_ids
            written[row] += is_break and has_begun[row]
            has_begun[row] = not is_break
            return id_ in queries[row].end_ids or written[row] == self.lines

        return model.generate_until(queries, ends)

    def answer(self, text: str) -> str:
        """The part of a model's text that is compared."""
        return answer_of(text)

    def row(
        self,
        asked: ProbeQuery,
        compared: Sequence[int],
        unedited: Sequence[int] | None,
        scope: float,
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Answer:
        """Compare words: `score` is F1, `exact` exact match and `contains` containment, after normalisation.

        Of several acceptable answers, the one that scores best counts for each of the three. An alias of at most three letters
        only counts if it is the answer: MQuAKE's `IN` and `US` are also words of wrong answers. Locality compares with the
        unedited model's answer, of which, too, the beginning up to the end of a sentence is enough for `exact`;
        `answer_score` is F1 with the dataset's answer.
        """
        answer, target = self._read(tokenizer, compared), asked.query.target
        aliases = asked.asked.aliases if asked.asked else ()
        acceptable = (target, *(each for each in aliases if not is_short(each) or exact_match(answer, each)))
        wanted = acceptable if unedited is None else (self._read(tokenizer, unedited),)
        exact = max(exact_match(answer, each) for each in wanted)
        if unedited is not None:
            exact = max(exact, exact_match(wanted[0], answer))
        return Answer(
            record_id=asked.record_id,
            protocol=self.name,
            axis=asked.axis,
            probe=asked.probe,
            prompt=asked.query.prompt,
            target=target,
            predicted=answer,
            n_tokens=len(compared),
            score=max(f1(answer, each) for each in wanted),
            exact=exact,
            answer_score=max(f1(answer, each) for each in acceptable) if asked.has_known_answer else math.nan,
            scope=scope,
            contains=max(contains(answer, each) for each in wanted),
        )

    def _read(self, tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
        return self.answer(tokenizer.decode(list(ids), skip_special_tokens=True))


@register_protocol
class NaturalInstruct(Natural):
    """As `natural`, after an instruction to answer in as few words as possible."""

    name: ClassVar[str] = "natural_instruct"
    title: ClassVar[str] = "natural, instructed"
    key: ClassVar[str] = name
    frame: ClassVar[str] = INSTRUCTION

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Put the instruction before the prompts."""
        return _open(tokenizer, pairs, INSTRUCTION.format, line_end_ids(tokenizer))


@register_protocol
class NaturalDistracted(Natural):
    """As `natural`, after an unrelated sentence; the prompt decides which of several."""

    name: ClassVar[str] = "natural_distracted"
    title: ClassVar[str] = "natural, distracted"
    key: ClassVar[str] = name

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Put a sentence before the prompts."""

        def behind(prompt: str) -> str:
            return f"{DISTRACTIONS[zlib.crc32(prompt.encode()) % len(DISTRACTIONS)]} {prompt}"

        return _open(tokenizer, pairs, behind, line_end_ids(tokenizer))

    @classmethod
    def question(cls, prompt: str) -> str:
        """Without the sentence."""
        sentence = next((each for each in DISTRACTIONS if prompt.startswith(each)), "")
        return prompt.removeprefix(sentence).lstrip()


@register_protocol
class NaturalChat(Natural):
    """As `natural_instruct`, as a conversation by the model's chat template; an answer may have several lines."""

    name: ClassVar[str] = "natural_chat"
    title: ClassVar[str] = "natural, chat"
    key: ClassVar[str] = name
    frame: ClassVar[str] = INSTRUCTION

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Make instruction and prompt the user's message.

        Raises:
            UserError: if the model has no chat template, or one that always makes it think first.
        """

        def message(prompt: str) -> str:
            text = chat_text(tokenizer, [{"role": "user", "content": INSTRUCTION.format(prompt)}])
            if text.rstrip().endswith("<think>"):
                raise ValueError(
                    "the chat template makes the model think before it answers, and only answers are scored"
                )
            return text

        try:
            return _open(tokenizer, pairs, message, frozenset())
        except ValueError as error:
            raise UserError(f"protocol natural_chat: {error}", fix="protocols: [natural, natural_instruct]") from None


@register_protocol
class NaturalThought(Natural):
    """A chain of thought on one line, then the answer on the next; only the answer is scored."""

    name: ClassVar[str] = "natural_thought"
    title: ClassVar[str] = "natural, chain of thought"
    key: ClassVar[str] = name
    frame: ClassVar[str] = THOUGHT
    lines: ClassVar[int] = 2

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Put an example before the prompts."""
        return _open(tokenizer, pairs, THOUGHT.format, line_end_ids(tokenizer), THOUGHT_LIMIT)

    def answer(self, text: str) -> str:
        """The text after `Answer:`; empty if the model never writes it."""
        return answer_of(text.partition("Answer:")[2])


def _open(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Sequence[tuple[str, str]],
    framed: Callable[[str], str],
    line_ids: frozenset[int],
    limit: int = LIMIT,
) -> list[Query]:
    """Queries that may be answered freely, one per pair of prompt and target."""
    special = end_ids(tokenizer)
    return [
        replace(
            open_query(tokenizer, framed(prompt.rstrip()), limit),
            target=target.strip(),
            end_ids=special,
            line_ids=line_ids,
        )
        for prompt, target in pairs
    ]
