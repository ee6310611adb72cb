"""Joint tokenisation: the target's ids are those that follow the prompt's ids when both are tokenised as one text.

Tokenising the target alone would add a BOS on Llama and Mistral, and a lone `▁` with some tokenizers; both change scores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Query:
    """A tokenised prompt with its target continuation.

    Attributes:
        prompt, target: the texts without surrounding space; `prompt + " " + target` is tokenised jointly.
        prompt_ids: the longest common prefix of the joint ids and the ids of the prompt alone.
        target_ids: the remaining joint ids, at least one.
    """

    prompt: str
    target: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


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
