"""Joint tokenisation: a target's ids are what follows the prompt's ids when both are tokenised as one text.

A target that is tokenised alone gets a BOS on Llama and Mistral and a lone `▁` with some tokenizers; both change
scores.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """Tokenise prompt and target as one text, one space between them, and cut after their longest common prefix.

    The cut may lie before the end of the prompt, where the target's first letters join the prompt's last ones.

    Raises:
        ValueError: for an empty target or prompt, or if no id of the prompt survives the join.
    """
    prompt, target = prompt.rstrip(), target.strip()
    if not target or not prompt:
        raise ValueError(f"nothing to score: prompt {prompt!r}, target {target!r}")
    alone = tokenizer(prompt)["input_ids"]
    joint = tokenizer(f"{prompt} {target}")["input_ids"]
    cut = 0
    while cut < min(len(alone), len(joint) - 1) and alone[cut] == joint[cut]:
        cut += 1
    if cut == 0:
        raise ValueError(f"no id of the prompt {prompt!r} is left before the target {target!r}")
    return Query(prompt, target, tuple(joint[:cut]), tuple(joint[cut:]))
