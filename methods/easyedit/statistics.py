"""Write covariance statistics in EasyEdit's file format, which ROME and MEMIT read instead of processing Wikipedia."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.common import moments

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

DATASET = "given"
"""Dataset name passed to EasyEdit. It is not a real dataset, so that a missing file is an error instead of a download."""
DTYPE = "float32"
"""As in EasyEdit's hyper-parameter files (`mom2_dtype`)."""


def write(folder: Path, model: "LoadedModel", layers: Sequence[int], home: Path) -> dict[str, object]:
    """Write the statistics of an artifact where EasyEdit will look for them (layer_stats.py:168).

    A file contains Σ k kᵀ over all keys, their number, and the requested number of texts, which is part of the file name. The
    artifact does not record that number, so the number of keys is used instead. Existing files are kept.

    Args:
        folder: folder of the artifact.
        model: the model that the keys belong to; EasyEdit names a folder after it.
        layers: layers whose statistics are written.
        home: EasyEdit's `stats_dir`.

    Returns:
        EasyEdit's options that point to the files.
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
