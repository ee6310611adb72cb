"""GRACE (Hartvigsen et al. 2023): a key-value codebook at one layer replaces its output for edited prompts."""

from methods.grace.editor import Grace, GraceHparams

__all__ = ["Grace", "GraceHparams"]
