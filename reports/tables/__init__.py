"""The tables a report can contain, by name. A module here that is added to `BUILDERS` is a new table."""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd

from reports.frame import SuiteFrame
from reports.layout import Table
from reports.tables.calibration import calibration_tables
from reports.tables.parity import parity_tables
from reports.tables.quality import quality_tables
from reports.tables.retention import retention_tables
from reports.tables.time import time_tables

Builder = Callable[[SuiteFrame], tuple[list[Table], pd.DataFrame]]
"""Makes the tables to show and the frame of all their numbers, each with the cells it comes from."""

BUILDERS: Mapping[str, Builder] = {
    "main": partial(quality_tables, name="main", title="Editing quality"),
    "components": partial(quality_tables, name="components", title="Components of the method"),
    "ablation": partial(quality_tables, name="ablation", title="One setting varied"),
    "calibration": calibration_tables,
    "parity": parity_tables,
    "retention": retention_tables,
    "time": time_tables,
}
