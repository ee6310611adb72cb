"""MALMEN: a hypernetwork whose changes are aggregated by least squares (Tan et al. 2024, arXiv 2311.04661)."""

from harness.registry import register
from methods.common.aggregation.editor import LearnedAggregationMethod
from methods.common.aggregation.hparams import AggregationHparams


@register("malmen", title="MALMEN", family="hypernetwork", version=1)
class Malmen(LearnedAggregationMethod):
    """One shift per matrix that comes nearest to what all edits of a batch wish, so that they do not cancel as in MEND's sum.

    Trained with a KL term on locality probes. With `rounds: 2` it is MALMEN² of EMSEdit's paper.
    """

    Hparams = AggregationHparams
