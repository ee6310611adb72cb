"""Power analysis: how many edits a table's tests need to mark a difference, and which difference a number of edits can show.

The best of several rows is marked if its tests against all others are significant after Holm's correction, which is at least as
powerful as dividing the level by the number of comparisons (Bonferroni). A paired test of N records whose differences have the
standard deviation s finds a difference d with probability P if N = ((z(1 - level / 2) + z(P)) · s / d)², and all of R tests
succeed with at least that probability if each fails with at most (1 - P) / R.
"""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from reports.common import AVERAGED
from reports.significance import LEVEL

if TYPE_CHECKING:
    from reports.frame import SuiteFrame

POWER = 0.8
"""Probability with which a difference of the planned size is to be marked."""
ASSUMED_SPREAD = 0.4
"""Of two methods that have nothing in common, each with three axes that are right or wrong like tossed coins."""


@dataclass(frozen=True, slots=True)
class Contestants:
    """The methods and models that a table of editing quality compares.

    Attributes:
        methods: rows, without the unedited model; at least 2.
        models: groups of columns.
        datasets: sections.
    """

    methods: int
    models: int
    datasets: int

    @property
    def comparisons(self) -> int:
        """Claims that are corrected together: best and second of Rel, Gen, Loc and Avg of each model and of Score."""
        return self.datasets * (4 * self.models + 1) * min(2, self.methods - 1)

    def edits_to_detect(self, difference: float, spread: float) -> int:
        """Smallest number of edits with which an Avg that is this much higher than all others is marked in `POWER` of cases.

        Args:
            difference: in Avg, above 0.
            spread: standard deviation of the difference of two methods on a record.
        """
        return math.ceil((self._reach * spread / difference) ** 2)

    def detectable(self, edits: int, spread: float) -> float:
        """Smallest difference in Avg that this many edits show; otherwise as `edits_to_detect`."""
        return self._reach * spread / math.sqrt(edits)

    @property
    def _reach(self) -> float:
        """The difference to detect in standard errors."""
        failure = (1 - POWER) / (self.methods - 1)
        return float(ndtri(1 - LEVEL / self.comparisons / 2) + ndtri(1 - failure))


def spread_of(frame: "SuiteFrame") -> float:
    """Standard deviation of the difference in Avg of two methods on a record, over all pairs; NaN without two methods."""
    edited = frame.cells[~frame.cells["is_reference"]]
    wanted = frame.records[frame.records["axis"].isin(AVERAGED)]
    by_record = wanted.groupby(["protocol", "cell", "record_id"])["score"].mean()
    variances = []
    for (protocol, *_), same in edited.groupby(["protocol", "model", "section", "template", "seed"]):
        scores = [by_record[str(protocol)][cell] for cell in same["cell"]]
        variances += [float((left - right).var()) for left, right in itertools.combinations(scores, 2)]
    return math.sqrt(np.mean(variances)) if variances else math.nan
