"""DEFER (Hartvigsen et al. 2023, after SERAC): a gate beside one layer defers to a value that it computes itself."""

from methods.defer.editor import Defer
from methods.defer.hparams import DeferHparams

__all__ = ["Defer", "DeferHparams"]
