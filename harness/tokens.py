"""Token ids of texts: the special tokens around them, and joint tokenisation of a prompt and its target.

The target's ids are those that follow the prompt's ids when both are tokenised as one text. Tokenising the target alone
would add a BOS on Llama and Mistral, and a lone `▁` with some tokenizers; both change scores.

What a tokenizer puts before a text (BOS) is kept: the model was trained with it. What it appends (`add_eos_token: true`, or
`$A </s>` in its template) is switched off when it is loaded: a target has to follow its prompt, and a model is asked what
comes after the prompt, not after the end of a text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)
"""Date of every conversation, because prompts must not depend on the day: the default of Llama 3's templates."""

_FIXED_DATE = (
    "{% macro strftime_now(format) %}{% set text = namespace(now=format) %}{% for code, value in dates.items() %}"
    "{% set text.now = text.now.replace('%' ~ code, value) %}{% endfor %}{{ text.now }}{% endmacro %}\n"
)
"""Goes before a chat template that asks for the date: `transformers` passes plain values to templates, and no functions."""
_DATES = {code: TODAY.strftime(f"%{code}") for code in (*"aAbBdjmyYHIMSpuwUWVG", "-d", "-m")}

_SAMPLES = ("a", "The capital of France is", "Who wrote it?", "1984", "C++, e.g.", "東京", " two  lines\n")
"""Texts that differ in length, in their first and last character, and in script."""


@dataclass(frozen=True, slots=True)
class Framing:
    """Ids that a tokenizer puts around every text.

    Attributes:
        prefix: ids before the text, such as BOS.
        suffix: ids after the text, such as EOS.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Framing":
        """Compare sample texts tokenised with and without special tokens.

        Raises:
            ValueError: if what is put around a text depends on the text, or on whether it is tokenised alone or in a batch.
        """
        framed = token_ids(tokenizer, _SAMPLES)
        if framed != [list(tokenizer(text)["input_ids"]) for text in _SAMPLES]:
            raise ValueError("gives a text other ids in a batch than alone")
        bare = token_ids(tokenizer, _SAMPLES, add_special_tokens=False)
        possible = [set(_framings(*pair)) for pair in zip(framed, bare, strict=True)]
        common = set.intersection(*possible)
        if not common:
            raise ValueError("puts special tokens around a text that depend on the text")
        prefix, suffix = min(common)
        return cls(prefix, suffix)


def drop_suffix(tokenizer: "PreTrainedTokenizerBase") -> Framing:
    """Make a tokenizer append nothing to a text, in place.

    Returns:
        What it put around texts before.

    Raises:
        ValueError: as `Framing.of`, or if it cannot be made to append nothing.
    """
    found = Framing.of(tokenizer)
    if not found.suffix:
        return found
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and Framing.of(tokenizer) != Framing(found.prefix):
        from tokenizers.processors import TemplateProcessing

        pieces = tokenizer.convert_ids_to_tokens(list(found.prefix))
        special = [{"id": "prefix", "ids": list(found.prefix), "tokens": pieces}] if pieces else []
        backend.post_processor = TemplateProcessing(single="prefix $A" if pieces else "$A", special_tokens=special)
    if Framing.of(tokenizer) != Framing(found.prefix):
        appended = " ".join(tokenizer.convert_ids_to_tokens(list(found.suffix)))
        raise ValueError(f"appends {appended} to every text, which cannot be switched off")
    return found


@dataclass(frozen=True, slots=True)
class Query:
    """A tokenised prompt with its target continuation.

    Attributes:
        prompt, target: the texts without surrounding space; `prompt + " " + target` is tokenised jointly.
        prompt_ids: the longest common prefix of the joint ids and the ids of the prompt alone.
        target_ids: the remaining joint ids, at least one; of a question that is answered freely, as many as the answer may have.
        end_ids: ids that end a free answer.
        line_ids: ids that end it once it has begun.
    """

    prompt: str
    target: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_ids: frozenset[int] = frozenset()
    line_ids: frozenset[int] = frozenset()


def joint_query(tokenizer: "PreTrainedTokenizerBase", prompt: str, target: str) -> Query:
    """Tokenise one prompt and target; see `joint_queries`."""
    return joint_queries(tokenizer, [(prompt, target)])[0]


def joint_queries(tokenizer: "PreTrainedTokenizerBase", pairs: Iterable[tuple[str, str]]) -> list[Query]:
    """Tokenise each prompt and target as one text and split it after the longest common prefix with the prompt's ids.

    The split may fall before the end of the prompt if the tokenizer merges its last letters with the target's first ones.

    Raises:
        ValueError: for an empty target or prompt, or if no id of the prompt is left.
    """
    stripped = [(prompt.rstrip(), target.strip()) for prompt, target in pairs]
    if empty := next((pair for pair in stripped if not all(pair)), None):
        raise ValueError(f"nothing to score: prompt {empty[0]!r}, target {empty[1]!r}")
    prompts = token_ids(tokenizer, [prompt for prompt, _ in stripped])
    joints = token_ids(tokenizer, [f"{prompt} {target}" for prompt, target in stripped])
    return [_cut(*pair, alone, joint) for pair, alone, joint in zip(stripped, prompts, joints, strict=True)]


def open_query(tokenizer: "PreTrainedTokenizerBase", prompt: str, limit: int) -> Query:
    """A prompt that may be continued freely, by at most `limit` ids: its target only gives their number.

    Raises:
        ValueError: for a prompt without ids, or a limit below 1.
    """
    (ids,) = token_ids(tokenizer, [prompt])
    if not ids or limit < 1:
        raise ValueError(f"nothing to continue: prompt {prompt!r}, {limit} ids")
    return Query(prompt, "", tuple(ids), (ids[0],) * limit)


def end_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids that end a text or a turn of a conversation: all special ones, because none of them belongs to an answer.

    `all_special_ids` has only those with a role, such as EOS, and lacks the ends of turns of Gemma 3 and Phi 3.
    """
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(map(int, added.union(tokenizer.all_special_ids)))


def line_end_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids whose text contains a line break, as pieces of byte-level and of SentencePiece vocabularies spell it."""
    return frozenset(
        id_ for piece, id_ in tokenizer.get_vocab().items() if "\n" in piece or "Ċ" in piece or piece == "<0x0A>"
    )


def chat_text(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation by the tokenizer's chat template, up to where the assistant answers.

    Models that can answer with or without thinking first (Qwen3) answer without; the date is always `TODAY`.

    Args:
        tokenizer: what it puts before every text is left out here.
        messages: `role` and `content` of each turn.

    Raises:
        ValueError: if it has no chat template, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ValueError("the model's tokenizer has no chat template")
    try:
        template = tokenizer.get_chat_template()
        text = str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_FIXED_DATE + template if "strftime_now" in template else template,
                enable_thinking=False,
                dates=_DATES,
            )
        )
    except Exception as error:  # what templates raise is theirs
        raise ValueError(f"the chat template refuses the messages: {error}") from None
    prefix = Framing.of(tokenizer).prefix
    return text.removeprefix("".join(tokenizer.convert_ids_to_tokens(list(prefix))))


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Tokenise all texts in one call, which is much faster than one call per text."""
    ids: list[list[int]] = tokenizer(list(texts), **options)["input_ids"] if texts else []
    return ids


def _cut(prompt: str, target: str, alone: Sequence[int], joint: Sequence[int]) -> Query:
    cut = 0
    while cut < min(len(alone), len(joint) - 1) and alone[cut] == joint[cut]:
        cut += 1
    if cut == 0:
        raise ValueError(f"no id of the prompt {prompt!r} is left before the target {target!r}")
    return Query(prompt, target, tuple(joint[:cut]), tuple(joint[cut:]))


def _framings(framed: Sequence[int], bare: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways to find the ids of a bare text among its ids with special tokens: what is before it, and what is after it."""
    for start in range(len(framed) - len(bare) + 1):
        if list(framed[start : start + len(bare)]) == list(bare):
            yield tuple(framed[:start]), tuple(framed[start + len(bare) :])
