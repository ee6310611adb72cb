"""EasyEdit's scoring rules, computed in batches, for comparison with numbers published with EasyEdit.

Line numbers refer to `easyeditor/evaluate/evaluate_utils.py`, unless another file of that folder is named, in zjunlp/EasyEdit
at commit 14cea8245f06715684592ab55184939b99d70784. Its oddities are reproduced on purpose; docs/metrics.md lists them, and the
parts that are not reproduced.
"""

from collections.abc import Hashable, Sequence
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
    """EasyEdit's scoring: arg-max at the ids that follow the prompt in the joint text; GRACE is scored by generation."""

    name: ClassVar[str] = "easyedit"
    title: ClassVar[str] = "EasyEdit's scoring"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def of(self, method: "MethodSpec") -> Protocol:
        """The variant of this protocol with which EasyEdit scores a method."""
        return FORMS["generation" if method.name in GENERATED else "teacher_forced"]

    def forms(self) -> tuple[Protocol, ...]:
        """Teacher forcing and generation."""
        return tuple(FORMS.values())

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Join prompt, one space and target unchanged (274), split after as many ids as the prompt alone has (293-295).

        Nothing is stripped, and if joining changes the prompt's own ids, the split still uses their original number. EasyEdit
        pads with the end-of-text id (../editors/editor.py:148, 152, 177) and treats each such id as padding, even inside a
        text: those in the prompt do not count towards its length, those in the joint text move the split to the right.

        Raises:
            ValueError: if nothing is left on one side of the split, where EasyEdit fails too (307, 308).
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
        """Arg-max prediction of each id after the split, given all ids before it (297-305)."""
        return model.teacher_forced(queries)

    def context(self, query: Query, position: int) -> Hashable | None:
        """The prompt and the target up to that position."""
        return query.prompt_ids + query.target_ids[:position]


class EasyEditGeneration(EasyEditScoring):
    """EasyEdit's scoring of GRACE: greedy generation against the target tokenised by itself (evaluate.py:150, 191, 230)."""

    key: ClassVar[str] = "easyedit_generation"

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Tokenise the prompt (249), and the target without special ids and without a leading space (248).

        With a tokenizer whose ids include spaces, such as GPT-2's, these are not the ids that a model generates after a
        prompt: a correct one-id answer scores 0.

        Raises:
            ValueError: for an empty prompt or target.
        """
        prompts = token_ids(tokenizer, [prompt for prompt, _ in pairs])
        targets = token_ids(tokenizer, [target for _, target in pairs], add_special_tokens=False)
        return [_query(*pair, *ids) for pair, *ids in zip(pairs, prompts, targets, strict=True)]

    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by as many ids as its target has (253-260)."""
        return model.generate(queries)

    def context(self, query: Query, position: int) -> None:
        """Not known: where a continuation ends early, the compared ids are others than the predicted ones."""

    def compared(self, query: Query, predicted: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Sequence[int]:
        """The last ids of prompt and continuation together, as many as the target has (262, 264).

        The continuation ends at the first end-of-text id; if that is early, the prompt's last ids take part in the comparison.
        If even the prompt is too short, EasyEdit fails; here the ids are padded on the left.
        """
        length, end = len(query.target_ids), end_of_text(tokenizer)
        said = predicted[: predicted.index(end) + 1] if end in predicted else predicted
        return (*[end] * length, *query.prompt_ids, *said)[-length:]


FORMS: dict[str, Protocol] = {"teacher_forced": EasyEditScoring(), "generation": EasyEditGeneration()}
"""Variants of EasyEdit's scoring."""

GENERATED = frozenset({"grace"})
"""Methods that EasyEdit scores by generation (evaluate.py:150, 191, 230)."""


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that EasyEdit pads with and that ends a generation.

    Raises:
        ValueError: if the tokenizer has no end-of-text id.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("EasyEdit's scoring needs an end-of-text id, and the tokenizer has none")
    return int(tokenizer.eos_token_id)


def _query(prompt: str, target: str, prompt_ids: Sequence[int], target_ids: Sequence[int]) -> Query:
    if not prompt_ids or not target_ids:
        raise ValueError(f"nothing to score: prompt {prompt!r}, target {target!r}")
    return Query(prompt, target, tuple(prompt_ids), tuple(target_ids))
