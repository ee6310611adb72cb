"""Joint tokenisation: a target's ids are what follows the prompt's ids when both are tokenised as one text.

A target that is tokenised alone gets a BOS on Llama and Mistral and a lone `▁` with some tokenizers; both change
scores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt with the continuation that it is scored against.

    Attributes:
        prompt, target: the texts without surrounding space; `prompt + " " + target` is what was tokenised.
        prompt_ids: joint ids up to the first one that differs from the prompt tokenised alone.
        target_ids: the joint ids after it, at least one.
    """

    prompt: str
    target: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]


def joint_query(tokenizer: "PreTrainedTokenizerBase", prompt: str, target: str) -> Query:
    """One of `joint_queries`."""
    return joint_queries(tokenizer, [(prompt, target)])[0]


def joint_queries(tokenizer: "PreTrainedTokenizerBase", pairs: Iterable[tuple[str, str]]) -> list[Query]:
    """Tokenise each prompt and target as one text, one space between them, and cut after their longest common prefix.

    The cut may lie before the end of the prompt, where the target's first letters join the prompt's last ones.

    Raises:
        ValueError: for an empty target or prompt, or if no id of the prompt survives the join.
    """
    stripped = [(prompt.rstrip(), target.strip()) for prompt, target in pairs]
    if empty := next((pair for pair in stripped if not all(pair)), None):
        raise ValueError(f"nothing to score: prompt {empty[0]!r}, target {empty[1]!r}")
    prompts = token_ids(tokenizer, [prompt for prompt, _ in stripped])
    joints = token_ids(tokenizer, [f"{prompt} {target}" for prompt, target in stripped])
    return [_cut(*pair, alone, joint) for pair, alone, joint in zip(stripped, prompts, joints, strict=True)]


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Ids of each text, all in one call, which takes a fraction of the time of one call each."""
    ids: list[list[int]] = tokenizer(list(texts), **options)["input_ids"] if texts else []
    return ids


def _cut(prompt: str, target: str, alone: Sequence[int], joint: Sequence[int]) -> Query:
    cut = 0
    while cut < min(len(alone), len(joint) - 1) and alone[cut] == joint[cut]:
        cut += 1
    if cut == 0:
        raise ValueError(f"no id of the prompt {prompt!r} is left before the target {target!r}")
    return Query(prompt, target, tuple(joint[:cut]), tuple(joint[cut:]))
