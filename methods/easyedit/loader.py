"""Import EasyEdit's modules without its heavy package imports; used only in the worker process.

Importing any part of `easyeditor` runs its `__init__`, which imports every method and requires torchvision, timm, fairscale and
a dozen others. Instead, the parent packages of the methods are created here, empty except for their paths, so that a
module imports only what it names itself. Edited weights are the same as with a full import.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("", ".models", ".models.melo", ".util", ".trainer", ".trainer.algs", ".evaluate", ".dataset", ".editors")
"""Packages whose `__init__` is skipped; those of individual methods are run."""
UNUSED = ("hydra", "matplotlib", "matplotlib.style", "datasets", "openai", "omegaconf", "sentence_transformers")
"""Imported by modules that are needed, but never called here; replaced by stand-ins unless installed."""
ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    ".util": {"HyperParams": ".util.hparams"},
    ".trainer": {
        "MALMEN": ".trainer.algs.MALMEN",
        "MEND": ".trainer.algs.MEND",
        "EditTrainer": ".trainer.EditTrainer",
    },
    ".trainer.algs": {"MEND": ".trainer.algs.MEND"},
    ".evaluate": {
        "attach_metric_meta": ".evaluate.metric_meta",
        "build_locality_metric_meta": ".evaluate.metric_meta",
        "compute_edit_quality": ".evaluate.evaluate",
        "compute_icl_edit_quality": ".evaluate.evaluate",
        "compute_sent_metric": ".evaluate.personality_evaluate",
    },
}
"""Names that a package re-exports, and the modules that define them."""


def install(home: Path) -> None:
    """Make `import easyeditor.…` find the modules of a checkout.

    Args:
        home: the folder that contains `easyeditor`.

    Raises:
        RuntimeError: if EasyEdit has already been imported.
    """
    root = home / "easyeditor"
    for dotted in PACKAGES:
        name = f"easyeditor{dotted}"
        if name in sys.modules:
            raise RuntimeError(f"{name} has already been imported")
        _add(name, _Package(name, root.joinpath(*dotted.split("."))))
    for name in UNUSED:
        if name not in sys.modules and not _exists(name):
            _add(name, _Unused(name))
    _add("easyeditor.models.melo.melo", ModuleType("easyeditor.models.melo.melo")).LORA = type("LORA", (), {})
    # `trainer` and `editors` look methods up in these; the original modules import every method
    _add("easyeditor.util.alg_dict", ModuleType("easyeditor.util.alg_dict")).ALG_DICT = {}
    _add("easyeditor.util.alg_train_dict", _TrainDict("easyeditor.util.alg_train_dict"))


class _Package(ModuleType):
    """A package with only a path and the re-exports in `ELSEWHERE`."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__ = [str(folder)]

    def __getattr__(self, name: str) -> Any:
        home = ELSEWHERE.get(self.__name__.removeprefix("easyeditor"), {}).get(name)
        if home is None:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"easyeditor{home}"), name)


class _TrainDict(ModuleType):
    """`ALG_TRAIN_DICT` with only MEND, imported on access."""

    def __getattr__(self, name: str) -> Any:
        if name != "ALG_TRAIN_DICT":
            raise AttributeError(name)
        return {"MEND": importlib.import_module("easyeditor.trainer.algs.MEND").MEND}


class _Unused(ModuleType):
    """Stand-in for a missing module: its names can be imported, but using them raises an error."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*_arguments: Any, **_named: Any) -> Any:
            raise ModuleNotFoundError(f"{self.__name__}.{name}: '{self.__name__}' is not installed", name=self.__name__)

        return type(name, (), {"__init__": fail, "__getattr__": fail})


def _add(name: str, module: ModuleType) -> Any:
    sys.modules[name] = module
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)
    return module


def _exists(name: str) -> bool:
    parent = name.rpartition(".")[0]
    if parent and isinstance(sys.modules.get(parent), _Unused):
        return False
    return find_spec(name) is not None
