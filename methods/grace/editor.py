"""GRACE as the harness sees it: read the keys, decide in order, learn the values side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method, State
from harness.errors import UserError
from harness.records import EditRequest
from harness.registry import register
from methods.grace.hparams import GraceHparams

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel


@register("grace", title="GRACE", family="memory", version=1)
class Grace(Method):
    """A codebook beside one feed-forward matrix; where a prompt's last token lies near a key, its value answers.

    The weights stay as they are, so whatever no key reaches is answered bit for bit as before; and only what is as near
    as ε is taken for an edit, so rephrases hardly ever are.
    """

    Hparams = GraceHparams
    hparams: GraceHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Insert all requests in their order, whatever the model says to them already.

        An edit whose key or loss is not a number fails: its prompt is answered by the model. `diagnostics` counts them.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        return self._inserted(model, None, requests, context)

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Insert further requests into the same codebook: what `edit` gives for earlier and further ones together.

        It is so because no request reads what later ones do to the codebook: a row that a later one learns again was
        learned before that by `edit` too. Only rounding differs, since `batch` puts requests together within a block;
        with a batch of one nothing does.

        Args:
            model, requests, artifacts, context: as for `edit`.
            state: the codebook, how many requests it was offered, whose first values were drawn in that order, and how
                all edits so far went.

        Raises:
            UserError: for a request longer than the model's context.
        """
        return self._inserted(model, state, requests, context)

    def _inserted(
        self, model: "LoadedModel", kept: State | None, requests: Sequence[EditRequest], context: Context
    ) -> EditedModel:
        """Insert into the codebook that was kept, or into an empty one."""
        import torch

        from harness.models.routed import RoutedModel
        from methods.common.paused import edit_queries
        from methods.common.tally import Tally
        from methods.grace.codebook import Codebook, label_of
        from methods.grace.training import learn, read

        n_before = 0 if kept is None else int(kept["offered"])
        with context.progress("GRACE", len(requests)) as advance, context.clock.phase("edit"):
            queries = edit_queries(model, requests)
            keys_NK, outputs_ND = read(model, queries, self.hparams)
            # Between eps and its root: rounding adds up over the layers, and prompts stay apart. Measured: 8 eps in fp32.
            noise = torch.finfo(model.model.dtype).eps ** 0.75
            book = Codebook(self.hparams, keys_NK, self._fresh(outputs_ND, context.seed, n_before), noise, kept)
            labels = [label_of(query, self.hparams.implementation) for query in queries]
            offered = [book.insert(request, label) for request, label in enumerate(labels)]
            lessons = [lesson for lesson in offered if lesson is not None]
            losses = learn(model, queries, book, lessons, self.hparams, advance)
        unread = [None] * int((~keys_NK.isfinite().all(-1)).sum())
        tally = (Tally() if kept is None else Tally.kept(kept)).with_losses([*losses, *unread])
        if not tally.learned:
            raise UserError("grace: key or loss of every edit is not a number", fix="choose a smaller `lr`")
        figures = {"keys": float(len(book)), "splits": float(book.splits), **tally.figures()}
        state = {**book.state(), **tally.state(), "offered": torch.tensor(n_before + len(queries))}
        return RoutedModel(model, self.hparams.layer, book, diagnostics=figures, state=state)

    def _fresh(self, outputs_ND: "Tensor", seed: int, n_before: int) -> "Tensor":
        """The value that each request would start from, `n_before` others having been before them."""
        import torch

        if self.hparams.start == "warm":
            return outputs_ND
        generator = torch.Generator().manual_seed(seed)
        drawn_ND = torch.rand(n_before + len(outputs_ND), outputs_ND.shape[1], generator=generator)
        return drawn_ND[n_before:].to(outputs_ND)
