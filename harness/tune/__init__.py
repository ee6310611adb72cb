"""`harness tune`: search a method's hyper-parameters for a model, on dev records only."""

from harness.tune.study import Question, Result, Tuning
from harness.tune.write import target, write

__all__ = ["Question", "Result", "Tuning", "target", "write"]
