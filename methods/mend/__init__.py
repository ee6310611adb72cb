"""MEND: a hypernetwork turns the gradient of an edit into a better update (Mitchell et al. 2022, arXiv 2110.11309)."""

from methods.mend.editor import Mend
from methods.mend.hparams import MendHparams

__all__ = ["Mend", "MendHparams"]
