"""FT-L: constrained fine-tuning of one feed-forward output matrix (Zhu et al. 2020; "FT+L" of Meng et al. 2022)."""

from methods.ft_l.editor import FtL, FtLHparams

__all__ = ["FtL", "FtLHparams"]
