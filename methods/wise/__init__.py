"""WISE: edits train copies of one matrix, and prompts are routed to a copy or the original (Wang et al. 2024, arXiv 2405.14768)."""

from methods.wise.editor import Wise
from methods.wise.hparams import WiseHparams

__all__ = ["Wise", "WiseHparams"]
