"""The edited weights of a cell as a file, for suites with `keep_weights: true`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from methods.common.weight_state import changed, fingerprint

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "edited.safetensors"
CHANGE_NORMS = "change_norms"


class KeptWeights:
    """What an edit made of the weights: all parameters of every module that it changed, by name, as they are afterwards.

    The file's metadata has under `change_norms`, as JSON, the Frobenius norm of the change of each of them.

    Args:
        model: unedited; it must be so again when the file is written.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._model = model
        self._unedited = fingerprint(model)
        self._weights: Mapping[str, Tensor] = {}

    def take(self) -> None:
        """Copy what differs from the unedited model now."""
        now = changed(self._model, self._unedited)
        self._weights = {name: value.cpu().contiguous().clone() for name, value in now.items()}

    def write(self, file: Path) -> None:
        """Write what was taken; the model is unedited again."""
        from safetensors.torch import save_file

        norms = {name: self._change(name, value) for name, value in self._weights.items()}
        save_file(dict(self._weights), file, metadata={CHANGE_NORMS: json.dumps(norms)})

    def _change(self, name: str, value: "Tensor") -> float:
        unedited = self._model.get_parameter(name).detach().cpu()
        return float((value.double() - unedited.double()).norm())
