"""Causal tracing as an entry of a suite: it edits nothing, and its artifact is drawn by the figure `causal_trace`."""

from collections.abc import Mapping

from harness.api import ArtifactSpec, Hparams
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from harness.registry import register
from harness.tracing.artifact import TraceOptions
from methods.common.layers import trace_of
from methods.common.unedited import UneditedMethod


class TraceHparams(TraceOptions, Hparams):
    """Options of a causal trace; their defaults are ROME's, except for a tenth of its facts."""


@register("trace", title="Causal trace", family="reference", version=1, edits=False)
class CausalTrace(UneditedMethod):
    """Trace facts through the unedited model, which then answers the questions of the suite."""

    Hparams = TraceHparams
    hparams: TraceHparams

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The trace.

        Raises:
            UserError: if the dataset keeps no records for training.
        """
        return {"trace": trace_of(target, data, self.hparams, seed)}
