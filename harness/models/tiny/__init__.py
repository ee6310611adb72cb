"""Tiny models, trained on the spot on the facts of a dataset: stand-ins for large models in runs without downloads."""
