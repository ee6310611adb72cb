"""GRACE as the harness sees it: read the keys, decide in order, learn the values side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError
from harness.records import DataRef, EditRequest
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.grace.hparams import GraceHparams
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


@register
class Grace:
    """A codebook beside one feed-forward matrix; where a prompt's last token lies near a key, its value answers.

    The weights stay as they are, so whatever no key reaches is answered bit for bit as before; and only what is as near
    as ε is taken for an edit, so rephrases hardly ever are.
    """

    spec: ClassVar[MethodSpec] = MethodSpec("grace", "GRACE", family="memory", version=1)
    Hparams: ClassVar[type[Hparams]] = GraceHparams

    def __init__(self, hparams: GraceHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Nothing is needed beforehand."""
        return {}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Insert all requests in their order, whatever the model says to them already.

        An edit whose key or loss is not a number fails: its prompt is answered by the model. `diagnostics` counts them.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        import torch

        from methods.common.paused import edit_queries
        from methods.common.routed import RoutedModel
        from methods.grace.codebook import Codebook, label_of
        from methods.grace.training import learn, read

        queries = edit_queries(model, requests)
        with context.progress("GRACE", len(queries)) as advance, context.clock.phase("edit"):
            keys_NK, outputs_ND = read(model, queries, self.hparams)
            # Between eps and its root: rounding adds up over the layers, and prompts stay apart. Measured: 8 eps in fp32.
            noise = torch.finfo(model.model.dtype).eps ** 0.75
            book = Codebook(self.hparams, keys_NK, self._fresh(outputs_ND, context.seed), noise)
            labels = [label_of(query, self.hparams.implementation) for query in queries]
            offered = [book.insert(request, label) for request, label in enumerate(labels)]
            lessons = [lesson for lesson in offered if lesson is not None]
            learned = learn(model, queries, book, lessons, self.hparams, advance) if lessons else None
        if learned is None or learned.failed == len(lessons):
            raise UserError("grace: key or loss of every edit is not a number", fix="choose a smaller `lr`")
        failed = learned.failed + int((~keys_NK.isfinite().all(-1)).sum())
        figures = {
            "keys": float(len(book)),
            "splits": float(book.splits),
            "failed": float(failed),
            "final_loss": learned.final_loss,
        }
        return RoutedModel(model, self.hparams.layer, book, figures=figures)

    def _fresh(self, outputs_ND: "Tensor", seed: int) -> "Tensor":
        """The value that each request would start from."""
        import torch

        if self.hparams.start == "warm":
            return outputs_ND
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(outputs_ND.shape, generator=generator).to(outputs_ND)
