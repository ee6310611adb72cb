"""GRACE (Hartvigsen et al. 2023): a codebook of keys and values beside one layer answers for edited prompts."""

from methods.grace.editor import Grace, GraceHparams

__all__ = ["Grace", "GraceHparams"]
