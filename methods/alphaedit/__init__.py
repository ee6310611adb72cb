"""AlphaEdit: updates that are confined to the null space of pretraining keys (Fang et al. 2025, arXiv 2410.02355)."""

from methods.alphaedit.editor import AlphaEdit, AlphaEditHparams

__all__ = ["AlphaEdit", "AlphaEditHparams"]
