"""What captions of several tables say alike."""

from reports.frame import SuiteFrame
from reports.stats import RESAMPLES


def seeds_shown(frame: SuiteFrame) -> str:
    """`seed 0`, or `averaged over seeds 0, 1`."""
    seeds = sorted(set(frame.cells["seed"]))
    return ("averaged over seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds))


def intervals_shown(frame: SuiteFrame) -> str:
    """What `±` is, as a sentence."""
    drawn = "seeds and records" if frame.cells["seed"].nunique() > 1 else "records"
    return f"±: half of the 95 % bootstrap interval over {drawn} (BCa, {RESAMPLES} resamples)."
