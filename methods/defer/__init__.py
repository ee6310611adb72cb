"""DEFER (Hartvigsen et al. 2023, after SERAC): a gate next to one layer defers to a value that it computes itself."""

from methods.defer.editor import Defer, DeferHparams

__all__ = ["Defer", "DeferHparams"]
