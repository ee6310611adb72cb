"""Layout of training rows: prompts and targets only, or as in EasyEdit, padding included."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.models.batching import Padded, left_padded
from harness.models.loaded import LoadedModel
from harness.tokens import Query
from methods.common.paused import Paused
from methods.wise.hparams import WiseHparams


@dataclass(frozen=True, slots=True)
class Lesson:
    """The training data of one edit.

    Attributes:
        edits: R rows: the edit alone and after each context prefix; R is the same for every edit.
        spared: the unrelated prompt that it is trained against, with its answer if that is known.
    """

    edits: tuple[Query, ...]
    spared: Query


@dataclass(frozen=True, slots=True)
class PausedRows:
    """Rows run up to the matrix, ready to continue from any output of it.

    Attributes:
        paused: the rows.
        read_BT: True for the tokens whose activation counts.
    """

    paused: Paused
    read_BT: Tensor


@dataclass(frozen=True, slots=True)
class LessonLayout:
    """The rows of S lessons, grouped by lesson.

    Attributes:
        edits: S * R rows.
        spared: S rows.
        share_B: factor on the mean loss of each row of `edits`.
    """

    edits: PausedRows
    spared: PausedRows
    share_B: Tensor

    @classmethod
    def of(cls, model: LoadedModel, lessons: Sequence[Lesson], hparams: WiseHparams) -> "LessonLayout":
        """Lay out lessons according to the hyper-parameters."""
        if hparams.implementation == "faithful-easyedit":
            (lesson,) = lessons
            return cls._faithful(model, lesson, hparams.layer)

        def rows(queries: Sequence[Query]) -> PausedRows:
            paused = Paused(model, queries, hparams.layer)
            return PausedRows(paused, paused.prompt_BT if hparams.reads == "prompt" else paused.mask_BT)

        edits = [query for lesson in lessons for query in lesson.edits]
        return cls(
            rows(edits), rows([lesson.spared for lesson in lessons]), torch.ones(len(edits), device=model.device)
        )

    @classmethod
    def _faithful(cls, model: LoadedModel, lesson: Lesson, layer: int) -> "LessonLayout":
        """Pad all rows of a lesson on the left, with one prompt mask as wide as the longest prompt (wise/utils.py:110).

        Padding is end-of-text, and its activation counts like that of any token (WISE.py:45). If the unrelated row is the
        longest, the last tokens of a prompt are trained like its target. The mean loss is divided by one column more than
        there are labels (WISE.py:275).
        """
        width = max(map(_length, (*lesson.edits, lesson.spared)))
        masked = max(len(query.prompt_ids) for query in lesson.edits)
        lay_out = partial(_flush_right, width=width, filler=int(model.tokenizer.eos_token_id))

        def rows(queries: Sequence[Query]) -> PausedRows:
            paused = Paused(model, queries, layer, lay_out)
            return PausedRows(paused, torch.ones_like(paused.mask_BT))

        edits = [_labelled_from(query, masked - (width - _length(query))) for query in lesson.edits]
        labels_B = torch.tensor([len(query.target_ids) for query in edits], device=model.device)
        return cls(rows(edits), rows([lesson.spared]), labels_B / (labels_B + 1))


def _length(query: Query) -> int:
    return len(query.prompt_ids) + len(query.target_ids)


def _labelled_from(query: Query, start: int) -> Query:
    """The same text, with everything from position `start` on as the target."""
    ids, start = query.prompt_ids + query.target_ids, max(start, 0)
    return replace(query, prompt_ids=ids[:start], target_ids=ids[start:])


def _flush_right(rows: Sequence[Sequence[int]], device: torch.device, width: int, filler: int) -> Padded:
    """Left-pad rows to `width` with a given id; position ids count columns, the model's default without explicit ones."""
    batch = left_padded(rows, device)
    more = (width - batch.ids_BT.shape[1], 0)
    mask_BT = pad(batch.mask_BT, more)
    ids_BT = pad(batch.ids_BT, more).masked_fill(mask_BT == 0, filler)
    return Padded(ids_BT, mask_BT, torch.arange(width, device=device).expand_as(ids_BT))
