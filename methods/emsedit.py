"""EMSEdit: meta-learning with several backpropagations per edit, from few records (arXiv 2508.04012)."""

from harness.registry import register
from methods.common.aggregation.editor import LearnedAggregationMethod
from methods.common.aggregation.hparams import AggregationHparams


@register("emsedit", title="EMSEdit", family="hypernetwork", version=2)
class EmsEdit(LearnedAggregationMethod):
    """MALMEN's hypernetwork with two rounds per batch, the second of which sees the gradients of the shifted model.

    Its training needs no locality probes: the norm of the shifts is regularised instead.
    """

    Hparams = AggregationHparams
