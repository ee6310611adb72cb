"""MALMEN: a hypernetwork whose changes are aggregated by least squares (Tan et al. 2024, arXiv 2311.04661)."""

from harness.registry import register
from methods.common import Implementation
from methods.common.aggregation.editor import LearnedAggregationMethod
from methods.common.aggregation.hparams import AggregationHparams


class MalmenHparams(AggregationHparams):
    """Hyper-parameters of MALMEN, in addition to those of its hypernetwork.

    Attributes:
        implementation: `faithful-easyedit` edits as EasyEdit does: it reads all tokens of an edit and averages over all labels
            of a micro-batch, so that `micro_batch` affects results. The hypernetwork is the same.
    """

    implementation: Implementation = "corrected"


@register("malmen", title="MALMEN", family="hypernetwork", version=2)
class Malmen(LearnedAggregationMethod):
    """One least-squares shift per matrix for the desired changes of all edits, so that they do not cancel as in MEND's sum.

    Trained with a KL term on locality probes. With `rounds: 2` it is MALMEN² of EMSEdit's paper.
    """

    Hparams = MalmenHparams
    hparams: MalmenHparams

    @property
    def implementation(self) -> Implementation:
        """As the hyper-parameter says."""
        return self.hparams.implementation
