"""GRACE as the harness sees it: read the keys, decide in order, learn the values side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Context, EditedModel, Hparams, State
from harness.errors import UserError
from harness.records import EditRequest
from harness.registry import register
from methods.common import Implementation
from methods.common.sequential import EditTally, SequentialMethod

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel


class GraceHparams(Hparams):
    """All choices of GRACE; the values with their sources are in `methods/hparams/grace/`.

    Attributes:
        layer: block whose second feed-forward matrix has the codebook next to it.
        distance: between keys: `euclidean` as in the paper, or `cosine`, 1 - cos.
        radius: ε of a new key: how far a prompt may lie from it and still be answered by its value.
        expand: what a prompt with the label of its nearest key, but outside its radius, does to the key: `coverage`
            widens the radius to reach it, `moving_average` also moves the key half the way.
        start: a new value is `cold`, uniform in [0, 1), or `warm`, what the matrix gives.
        replace: the value stands in for the matrix at the `last` token of the prompt, or at all of the `prompt` before it.
        lr: of Adam, which starts afresh for each request.
        steps: optimiser steps per request.
        batch: requests that are read or trained side by side; changes memory, and results only by rounding.
        implementation: `corrected` compares targets id by id, and takes a prompt that returns with another target for a
            new edit of the same row. `faithful-easyedit` compares mean labels, of the wrong row as soon as there are
            two (see `codebook`), and adds a row for such a prompt that not even the prompt itself reaches.
    """

    layer: int = Field(ge=0)
    distance: Literal["euclidean", "cosine"]
    radius: float = Field(gt=0)
    expand: Literal["coverage", "moving_average"]
    start: Literal["cold", "warm"]
    replace: Literal["last", "prompt"]
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    implementation: Implementation


@register("grace", title="GRACE", family="memory", version=1)
class Grace(SequentialMethod):
    """A codebook next to one feed-forward matrix; where a prompt's last token lies near a key, its value answers.

    The weights stay as they are, so whatever no key reaches is answered bit for bit as before; and only what is as near
    as ε is taken for an edit, so rephrases hardly ever are.
    """

    Hparams = GraceHparams
    hparams: GraceHparams

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Insert all requests into the codebook in their order, whatever the model says to them already.

        Blocks give what one edit gives, because no request reads what later ones do to the codebook: a row that a later one
        learns again was learned before that by a single edit too. Only rounding differs, since `batch` puts requests
        together within a block; with a batch of one nothing does. An edit whose key or loss is not a number fails: its
        prompt is answered by the model. `diagnostics` counts them.

        Args:
            model, requests, artifacts, context: see `Method.extend`.
            state: the codebook, how many requests it was offered, whose first values were drawn in that order, and how
                all edits so far went.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        import torch

        from harness.models.routed import RoutedModel
        from methods.common.paused import edit_queries
        from methods.grace.codebook import Codebook, label_of
        from methods.grace.training import learn, read

        n_before = int(state["offered"]) if state else 0
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            queries = edit_queries(model, requests)
            keys_NK, outputs_ND = read(model, queries, self.hparams)
            # Between eps and its root: rounding adds up over the layers, and prompts stay apart. Measured: 8 eps in fp32.
            noise = torch.finfo(model.model.dtype).eps ** 0.75
            book = Codebook(self.hparams, keys_NK, self._fresh(outputs_ND, context.seed, n_before), noise, state)
            labels = [label_of(query, self.hparams.implementation) for query in queries]
            offered = [book.insert(request, label) for request, label in enumerate(labels)]
            pending = [value for value in offered if value is not None]
            losses = learn(model, queries, book, pending, self.hparams, advance)
        unread = [None] * int((~keys_NK.isfinite().all(-1)).sum())
        tally = EditTally.of(state).with_losses([*losses, *unread])
        if not tally.learned:
            raise UserError("grace: key or loss of every edit is not a number", fix="choose a smaller `lr`")
        diagnostics = {"keys": float(len(book)), "splits": float(book.splits), **tally.diagnostics()}
        kept = {**book.state(), **tally.state(), "offered": torch.tensor(n_before + len(queries))}
        return RoutedModel(model, self.hparams.layer, book, diagnostics=diagnostics, state=kept)

    def _fresh(self, outputs_ND: "Tensor", seed: int, n_before: int) -> "Tensor":
        """The value that each request would start from, `n_before` others having been before them."""
        import torch

        if self.hparams.start == "warm":
            return outputs_ND
        generator = torch.Generator().manual_seed(seed)
        drawn_ND = torch.rand(n_before + len(outputs_ND), outputs_ND.shape[1], generator=generator)
        return drawn_ND[n_before:].to(outputs_ND)
