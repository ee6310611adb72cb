"""FT-L as the harness sees it: an edit is a series of calls, each of which trains on some of the requests."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.records import DataRef, EditRequest
from harness.tokens import joint_query
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.ft_l.hparams import FtLHparams
from methods.ft_l.rows import OBJECTIVES, Row, as_easyedit
from methods.registry import register

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.ft_l.training import Masters


@register
class FtL:
    """Fine-tunes W so that the last prompt position predicts the target's tokens.

    With several target tokens the optimum of `prompt_last` spreads probability over all of them at that one position,
    and continuation tokens are never trained: reliability on long targets is bounded by what the model continues
    correctly by itself.
    """

    spec: ClassVar[MethodSpec] = MethodSpec("ft-l", "FT-L", family="weights", version=2)
    Hparams: ClassVar[type[Hparams]] = FtLHparams

    def __init__(self, hparams: FtLHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Nothing is needed beforehand."""
        return {}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train W on calls of `batch` requests each.

        Raises:
            UserError: when the loss is no longer a number; the model is as it was.
        """
        from methods.common.plain import PlainModel
        from methods.common.weights import Snapshot
        from methods.ft_l.training import Masters

        names = self._trained(model)
        calls = [self._rows(model, call) for call in _chunks(requests, self.hparams.batch)]
        snapshot = Snapshot(model.model, names)
        masters = Masters([model.model.get_parameter(name) for name in names])
        ends = []
        with (
            context.progress("FT-L", len(requests)) as advance,
            snapshot.restored_on_error(),
            context.clock.phase("edit"),
        ):
            for rows in calls:
                ends.append(self._train(model, masters, rows))
                advance(len(rows))
        figures = {"final_loss": sum(ends) / len(ends), **masters.figures()}
        return PlainModel(model, on_revert=snapshot.restore, figures=figures)

    def _trained(self, model: "LoadedModel") -> list[str]:
        """Names of what is trained."""
        name, _ = model.value_matrix(self.hparams.layer)
        if self.hparams.implementation == "corrected":
            return [name]
        owner = name.removesuffix("weight")
        return [name for name, _ in model.model.named_parameters() if name.startswith(owner)]

    def _rows(self, model: "LoadedModel", requests: Sequence[EditRequest]) -> list[Row]:
        """The requests of one call as they are read."""
        if self.hparams.implementation == "faithful-easyedit":
            return as_easyedit(model.tokenizer, requests)
        row_of = OBJECTIVES[self.hparams.objective]
        return [row_of(joint_query(model.tokenizer, r.prompt, r.target_new)) for r in requests]

    def _train(self, model: "LoadedModel", masters: "Masters", rows: Sequence[Row]) -> float:
        """One call; the loss at its end."""
        from methods.ft_l.training import batches, train

        call = batches(model, rows, self.hparams.layer, self.hparams.micro_batch)
        return train(model, masters, call, self.hparams)


def _chunks(requests: Sequence[EditRequest], size: int) -> Iterator[Sequence[EditRequest]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))
