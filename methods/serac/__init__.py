"""SERAC: a memory of edits, a scope classifier and a counterfactual model (see `editor`)."""

from methods.serac.editor import Serac

__all__ = ["Serac"]
