"""EasyEdit's scoring rules, in batches, so that numbers published with it can be compared with those of a cell.

Line numbers are those of `easyeditor/evaluate/evaluate_utils.py`, unless another file of that folder is named, in zjunlp/EasyEdit
at commit 14cea8245f06715684592ab55184939b99d70784. What looks odd is as it is there; docs/metrics.md lists it, and what is
not taken over.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.evaluation.protocol import Protocol
from harness.registry import register_protocol
from harness.tokens import Query, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import EditedModel
    from harness.registry import MethodSpec


@register_protocol
class EasyEditScoring(Protocol):
    """EasyEdit's scoring: arg-max over the ids that prompt and target have beyond the prompt's; GRACE by generation."""

    name: ClassVar[str] = "easyedit"
    title: ClassVar[str] = "EasyEdit's scoring"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def of(self, method: "MethodSpec") -> Protocol:
        """The form in which EasyEdit scores a method."""
        return FORMS["generation" if method.name in GENERATED else "teacher_forced"]

    def forms(self) -> tuple[Protocol, ...]:
        """Teacher forcing and generation."""
        return tuple(FORMS.values())

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Prompt, one space and target as they are (274), cut after as many ids as the prompt has by itself (293-295).

        Nothing is stripped, and where the join changes the prompt's own ids the cut stays at their number. EasyEdit
        pads with the end-of-text id (../editors/editor.py:148, 152, 177) and takes each such id for padding, also in a text:
        those of the prompt do not count towards its length, those of prompt and target together move the cut to the right.

        Raises:
            ValueError: if nothing is left on one side of the cut, where EasyEdit fails too (307, 308).
        """
        padding = end_of_text(tokenizer)
        prompts = token_ids(tokenizer, [prompt for prompt, _ in pairs])
        joints = token_ids(tokenizer, [f"{prompt} {target}" for prompt, target in pairs])
        cuts = [
            sum(token != padding for token in alone) + joint.count(padding)
            for alone, joint in zip(prompts, joints, strict=True)
        ]
        return [_query(*pair, joint[:cut], joint[cut:]) for pair, joint, cut in zip(pairs, joints, cuts, strict=True)]

    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """The arg-max before each id behind the cut, given all ids before it (297-305)."""
        return model.teacher_forced(queries)


class EasyEditGeneration(EasyEditScoring):
    """EasyEdit's scoring of GRACE: greedy generation against the target tokenised by itself (evaluate.py:150, 191, 230)."""

    key: ClassVar[str] = "easyedit_generation"

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """The prompt (249), and the target without special ids and without the space before it (248).

        With a tokenizer that keeps spaces in its ids, as GPT-2's does, these are not the ids that a model says after a
        prompt: a right answer of one id scores 0.

        Raises:
            ValueError: for a prompt or target without an id.
        """
        prompts = token_ids(tokenizer, [prompt for prompt, _ in pairs])
        targets = token_ids(tokenizer, [target for _, target in pairs], add_special_tokens=False)
        return [_query(*pair, *ids) for pair, *ids in zip(pairs, prompts, targets, strict=True)]

    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """The greedy continuation of each prompt by as many ids as its target has (253-260)."""
        return model.generate(queries)

    def compared(self, query: Query, predicted: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Sequence[int]:
        """The last ids of prompt and continuation together, as many as the target has (262, 264).

        The continuation ends with the first end-of-text id, and after an early end the prompt's last ids are compared.
        Where even the prompt is too short, EasyEdit fails; here it counts as padded on the left.
        """
        length, end = len(query.target_ids), end_of_text(tokenizer)
        said = predicted[: predicted.index(end) + 1] if end in predicted else predicted
        return (*[end] * length, *query.prompt_ids, *said)[-length:]


FORMS: dict[str, Protocol] = {"teacher_forced": EasyEditScoring(), "generation": EasyEditGeneration()}
"""How EasyEdit asks."""

GENERATED = frozenset({"grace"})
"""Methods that EasyEdit scores by generation (evaluate.py:150, 191, 230)."""


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that EasyEdit pads with and that ends a generation.

    Raises:
        ValueError: for a tokenizer without one.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("EasyEdit's scoring needs an end-of-text id, and the tokenizer has none")
    return int(tokenizer.eos_token_id)


def _query(prompt: str, target: str, prompt_ids: Sequence[int], target_ids: Sequence[int]) -> Query:
    if not prompt_ids or not target_ids:
        raise ValueError(f"nothing to score: prompt {prompt!r}, target {target!r}")
    return Query(prompt, target, tuple(prompt_ids), tuple(target_ids))
