"""GRACE as a `Method`: compute all keys, build the codebook in request order, train the values in batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import ArtifactSpec, Context, EditedModel, Hparams, State
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, FP32, PROMPT_TOKENS, SUFFIX_TOKENS, Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import Implementation, require_masks
from methods.common.layers import Layer, blocks_above
from methods.common.sequential import EditTally, SequentialMethod

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.models.loaded import LoadedModel


class GraceHparams(Hparams):
    """Hyper-parameters of GRACE; values and their sources are in `methods/hparams/grace/`.

    Attributes:
        layer: block whose second feed-forward matrix gets the codebook.
        distance: distance between keys: `euclidean` as in the paper, or `cosine`, 1 - cos.
        radius: ε, the initial radius of a new key; prompts within it get the key's value.
        expand: what happens to the nearest key when a prompt with the same label falls outside its radius: `coverage`
            widens the radius to reach the prompt, `moving_average` also moves the key halfway towards it.
        start: initial value: `cold` is uniform in [0, 1), `warm` is the output of the matrix.
        replace: the value replaces the output at the `last` token of the prompt, or at all tokens of the `prompt` before
            the last.
        lr: of Adam, which is re-initialised for each request.
        steps: optimiser steps per request.
        batch: requests that are read or trained together; affects memory, and results only through rounding.
        implementation: `corrected` compares targets id by id, and treats a repeated prompt with a new target as a new edit
            of the same row. `faithful-easyedit` compares mean labels, those of the wrong row as soon as there are two (see
            `codebook`), and for a repeated prompt adds a row that not even the prompt itself reaches.
    """

    layer: Layer
    distance: Literal["euclidean", "cosine"]
    radius: float = Field(gt=0)
    expand: Literal["coverage", "moving_average"]
    start: Literal["cold", "warm"]
    replace: Literal["last", "prompt"]
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    implementation: Implementation

    @property
    def passes_per_edit(self) -> float:
        """Each step of a batch passes all its edits; values at the last token need only the columns from there on."""
        columns = SUFFIX_TOKENS if self.replace == "last" else PROMPT_TOKENS
        return 3.0 * self.steps * columns / PROMPT_TOKENS

    def share_of_blocks(self, n_layers: int) -> float:
        """Those above the matrix."""
        return blocks_above(self.layer, n_layers) / n_layers


@register("grace", title="GRACE", family="memory", version=1)
class Grace(SequentialMethod):
    """A codebook at one feed-forward matrix; if a prompt's last token falls within a key's radius, that key's value is used.

    The weights do not change, so prompts outside every radius get bit-identical outputs. Only prompts within ε count as
    edited, which rephrases rarely are.
    """

    Hparams = GraceHparams
    hparams: GraceHparams

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """None.

        Raises:
            UserError: if values at the last token cannot be trained on the model.
        """
        if self.hparams.replace == "last":
            require_masks(target, self.spec.name)
        return {}

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The codebook; a batch of values with what is rerun above the matrix; a comparison of prompts with all keys."""
        model = target.footprint
        batch = min(self.hparams.batch, data.edits)
        above = blocks_above(self.hparams.layer, model.n_layers)
        columns = SUFFIX_TOKENS if self.hparams.replace == "last" else PROMPT_TOKENS
        return Memory(
            kept={"keys and values": 2 * data.edits * (model.ffn + model.hidden) * FP32},
            edit={
                "activations": max(
                    model.forward(batch * PROMPT_TOKENS),
                    model.cache(batch * PROMPT_TOKENS, above) + model.backward(batch * columns, above),
                ),
                "logits": model.logits(batch * ANSWER_TOKENS, 4),
            },
            evaluate={"distances": 3.0 * eval_batch * data.edits * FP32},
        )

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Insert all requests into the codebook in order, including those that the model already answers correctly.

        Editing in blocks gives the same result as one edit run, up to rounding, because no request depends on later ones:
        `batch` only groups requests within a block, so with a batch of one the results are identical. An edit with a
        non-finite key or loss fails and its prompt is answered by the unedited model; `diagnostics` counts the failures.

        Args:
            model, requests, artifacts, context: see `Method.extend`.
            state: the codebook, the generator of initial values, which are drawn in the order of all requests, and the outcomes of
                all edits so far.

        Raises:
            UserError: if a request is longer than the model's context, or if all edits fail.
        """
        import torch

        from harness.models.routed import RoutedModel
        from methods.common.paused import edit_queries
        from methods.grace.codebook import Codebook, label_of
        from methods.grace.training import learn, read

        generator = torch.Generator().manual_seed(context.seed)
        if state:
            generator.set_state(state["generator"].cpu())
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            queries = edit_queries(model, requests)
            keys_NK, outputs_ND = read(model, queries, self.hparams)
            # Between eps and sqrt(eps): above rounding accumulated over the layers, measured at 8 eps in fp32, and below
            # the distance between different prompts.
            noise = torch.finfo(model.model.dtype).eps ** 0.75
            book = Codebook(self.hparams, keys_NK, self._fresh(outputs_ND, generator), noise, state)
            labels = [label_of(query, self.hparams.implementation) for query in queries]
            offered = [book.insert(request, label) for request, label in enumerate(labels)]
            pending = [value for value in offered if value is not None]
            losses = learn(model, queries, book, pending, self.hparams, advance)
        unread = [None] * int((~keys_NK.isfinite().all(-1)).sum())
        tally = EditTally.of(state).with_losses([*losses, *unread])
        if not tally.learned:
            raise UserError("grace: the key or loss of every edit is not a number", fix="choose a smaller `lr`")
        diagnostics = {"keys": float(len(book)), "splits": float(book.splits), **tally.diagnostics()}
        kept = {**book.state(), **tally.state(), "generator": generator.get_state()}
        return RoutedModel(model, self.hparams.layer, book, diagnostics=diagnostics, state=kept)

    def _fresh(self, outputs_ND: "Tensor", generator: "torch.Generator") -> "Tensor":
        """Initial value of each request."""
        import torch

        if self.hparams.start == "warm":
            return outputs_ND
        return torch.rand(outputs_ND.shape, generator=generator).to(outputs_ND)
