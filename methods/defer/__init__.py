"""DEFER (Hartvigsen et al. 2023, after SERAC): a gate at one layer replaces its output with a learned value."""

from methods.defer.editor import Defer, DeferHparams

__all__ = ["Defer", "DeferHparams"]
