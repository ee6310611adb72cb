"""The columns that MLflow's runs page shows first: a shared view, as made by its button *Share*.

MLflow keeps a shared view in a tag of the experiment, and opens it for an address with its key.
"""

import json
from collections.abc import Sequence

SHARE_KEY = "harness"
"""Key of the view in an address: `/#/experiments/<id>/runs?viewStateShareKey=harness`."""

_FIRST = "generation"
_SCORES = ("score", "reliability", "generality", "locality")
_OTHERS = ("freq", "edit_time_vs_onceedit", "time_from_scratch_vs_onceedit", "edit_s", "flops.edit", "flops.per_token")


def view_tag() -> str:
    """Name of the tag of the experiment."""
    return f"mlflow.sharedViewState.{SHARE_KEY}"


def view_state(protocols: Sequence[str]) -> str:
    """Value of the tag: model and dataset, scores under one protocol, Freq, times and FLOPs, best score first.

    Args:
        protocols: of the suite; scores under generation are shown, or those under the first if there are none.
    """
    shown = _FIRST if _FIRST in protocols or not protocols else protocols[0]
    metrics = [*(f"{shown}.{name}" for name in _SCORES), *_OTHERS]
    columns = [f"params.`{name}`" for name in ("model", "dataset")] + [f"metrics.`{name}`" for name in metrics]
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": f"metrics.`{shown}.score`",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
        }
    )
