"""Traces written by hand, with a known layer that decides."""

import numpy as np

from harness.tracing.trace import KINDS, Trace, TracedFact, roles_of


def fact(number=0, layers=6, decisive=3, subject=3, after=3, height=0.5):
    """Effects rise with the number of the fact, so that averages have a spread."""
    roles = tuple(roles_of(subject, after))
    effects = {kind: np.full((len(roles), layers), 0.01 * number) for kind in KINDS}
    effects["mlp"][roles.index("last subject"), decisive] += height
    effects["state"][-1, -1] = 0.6
    return TracedFact(
        f"r{number}", "The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "French",
        tuple(f"t{place}" for place in range(len(roles))), roles, 0.7, 0.1 + 0.01 * number, effects,
    )  # fmt: skip


def trace(facts=4, layers=6, decisive=3):
    made = tuple(fact(number, layers, decisive) for number in range(facts))
    return Trace(made, 10, {"state": 1, "mlp": 2, "attention": 2}, 0.3)
