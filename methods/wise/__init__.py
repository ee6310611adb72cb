"""WISE: edits go to a copy of one matrix, and prompts to the copy or to the original (Wang et al. 2024, arXiv 2405.14768)."""

from methods.wise.editor import Wise
from methods.wise.hparams import WiseHparams

__all__ = ["Wise", "WiseHparams"]
