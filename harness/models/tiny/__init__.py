"""Tiny models trained on the spot: small stand-ins that know the facts of a dataset, for runs without any download."""
