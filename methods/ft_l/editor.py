"""FT-L as the harness sees it: an edit is a series of calls, each of which trains on some of the requests."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method, State
from harness.records import EditRequest
from harness.registry import register
from methods.ft_l.hparams import FtLHparams
from methods.ft_l.rows import OBJECTIVES, Row, as_easyedit

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from methods.ft_l.training import Masters


@register("ft-l", title="FT-L", family="weights", version=3)
class FtL(Method):
    """Fine-tunes W so that the last prompt position predicts the target's tokens.

    With several target tokens the optimum of `prompt_last` spreads probability over all of them at that one position,
    and continuation tokens are never trained: reliability on long targets is bounded by what the model continues
    correctly by itself.
    """

    Hparams = FtLHparams
    hparams: FtLHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train W on calls of `batch` requests each.

        Raises:
            UserError: for a request longer than the model's context, or when the loss is no longer a number; the model is
                as it was.
        """
        return self.extend(model, {}, requests, artifacts, context)

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Train W on further calls: what `edit` gives for the calls of all blocks together, bit for bit.

        Args:
            model, requests, artifacts, context: as for `edit`.
            state: W before it was rounded to the model's precision; nothing where that is at least fp32.

        Raises:
            UserError: as `edit`.
        """
        from harness.models.edited import WeightEditedModel
        from harness.models.weights import Snapshot
        from methods.ft_l.training import Masters

        names = self._trained(model)
        snapshot = Snapshot(model.model, names)
        masters = Masters([model.model.get_parameter(name) for name in names], [state[name] for name in names if state])
        ends = []
        with (
            context.progress("FT-L", len(requests)) as advance,
            snapshot.restored_on_error(),
            context.clock.phase("edit"),
        ):
            for call in _chunks(requests, self.hparams.batch):
                ends.append(self._train(model, masters, self._rows(model, call)))
                advance(len(call))
        figures = {**({"final_loss": sum(ends) / len(ends)} if ends else {}), **masters.figures()}
        return WeightEditedModel(model, snapshot.restore, figures, masters.state(names))

    def _trained(self, model: "LoadedModel") -> list[str]:
        """Names of what is trained."""
        name, _ = model.value_matrix(self.hparams.layer)
        if self.hparams.implementation == "corrected":
            return [name]
        owner = name.removesuffix("weight")
        return [name for name, _ in model.model.named_parameters() if name.startswith(owner)]

    def _rows(self, model: "LoadedModel", requests: Sequence[EditRequest]) -> list[Row]:
        """The requests of one call as they are read."""
        from methods.common.paused import edit_queries

        queries = edit_queries(model, requests)
        if self.hparams.implementation == "faithful-easyedit":
            return as_easyedit(model.tokenizer, requests)
        return [OBJECTIVES[self.hparams.objective](query) for query in queries]

    def _train(self, model: "LoadedModel", masters: "Masters", rows: Sequence[Row]) -> float:
        """One call; the loss at its end."""
        from methods.ft_l.training import batches, train

        call = batches(model, rows, self.hparams.layer, self.hparams.micro_batch)
        return train(model, masters, call, self.hparams)


def _chunks(requests: Sequence[EditRequest], size: int) -> Iterator[Sequence[EditRequest]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))
