"""Second moments of keys as EasyEdit's statistics files, which ROME and MEMIT read in the place of a pass over Wikipedia."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.common import moments

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

DATASET = "given"
"""What EasyEdit takes for the name of a data set. It knows none of it, so that a file that is not there is an error."""
DTYPE = "float32"
"""As in its files of hyper-parameters (`mom2_dtype`)."""


def write(folder: Path, model: "LoadedModel", layers: Sequence[int], home: Path) -> dict[str, object]:
    """Write the second moments of an artifact where EasyEdit will look for them (layer_stats.py:168).

    A file has Σ k kᵀ over all keys, their number, and the number of texts that it was asked for, which decides the name. No
    artifact knows that number; the one of keys stands for it. Files that are there already are left.

    Args:
        folder: of the artifact.
        model: whose keys they are; its name is that of a folder.
        layers: whose.
        home: EasyEdit's `stats_dir`.

    Returns:
        EasyEdit's options under which it finds them.
    """
    import numpy as np

    keys = moments.tokens(folder)
    name = str(model.model.config._name_or_path).rpartition("/")[2]
    statistics = home / name / f"{DATASET}_stats"
    statistics.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        file = statistics / f"{model.path(model.layout.value_matrix, layer)}_{DTYPE}_mom2_{keys}.npz"
        if not file.exists():
            lower_KK = moments.load(folder, layer).lower_KK
            sum_KK = (lower_KK @ lower_KK.T).mul_(keys).float().numpy()
            state: dict[str, Any] = {
                "constructor": "easyeditor.util.runningstats.SecondMoment()",
                "count": keys,
                "mom2": sum_KK,
            }
            np.savez(file, **{f"mom2.{key}": value for key, value in state.items()}, sample_size=keys)
    return {"stats_dir": str(home), "mom2_dataset": DATASET, "mom2_n_samples": keys, "mom2_dtype": DTYPE}
