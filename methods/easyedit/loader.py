"""EasyEdit's modules without EasyEdit's imports: only for the worker's process, which ends with its cell.

Importing any part of `easyeditor` runs its `__init__`, which imports every method and wants torchvision, timm, fairscale and
a dozen more. The packages on the way to the seven methods are made here instead, empty but for their paths, so that a
module brings what it names itself and nothing else. Weights after an edit are those of a full import.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("", ".models", ".models.melo", ".util", ".trainer", ".trainer.algs", ".evaluate", ".dataset", ".editors")
"""Whose `__init__` is not run; those of single methods are."""
UNUSED = ("hydra", "matplotlib", "matplotlib.style", "datasets", "openai", "omegaconf")
"""Imported by modules on the way and called by none that is used here; present ones are imported as they are."""
ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    ".util": {"HyperParams": ".util.hparams"},
    ".trainer": {"MEND": ".trainer.algs.MEND", "EditTrainer": ".trainer.EditTrainer"},
    ".trainer.algs": {"MEND": ".trainer.algs.MEND"},
    ".evaluate": {
        "attach_metric_meta": ".evaluate.metric_meta",
        "build_locality_metric_meta": ".evaluate.metric_meta",
        "compute_edit_quality": ".evaluate.evaluate",
        "compute_icl_edit_quality": ".evaluate.evaluate",
        "compute_sent_metric": ".evaluate.personality_evaluate",
    },
}
"""Names that a package hands on, and the modules that have them."""


def install(home: Path) -> None:
    """Make `import easyeditor.…` find the modules of a checkout.

    Args:
        home: the folder that holds `easyeditor`.

    Raises:
        RuntimeError: if another EasyEdit has been imported already.
    """
    root = home / "easyeditor"
    for dotted in PACKAGES:
        name = f"easyeditor{dotted}"
        if name in sys.modules:
            raise RuntimeError(f"{name} has been imported already")
        _add(name, _Package(name, root.joinpath(*dotted.split("."))))
    for name in UNUSED:
        if name not in sys.modules and not _exists(name):
            _add(name, _Unused(name))
    _add("easyeditor.models.melo.melo", ModuleType("easyeditor.models.melo.melo")).LORA = type("LORA", (), {})
    # what `trainer` and `editors` look methods up in; the full ones import all of them
    _add("easyeditor.util.alg_dict", ModuleType("easyeditor.util.alg_dict")).ALG_DICT = {}
    _add("easyeditor.util.alg_train_dict", _TrainDict("easyeditor.util.alg_train_dict"))


class _Package(ModuleType):
    """A package with a path and nothing in it but what `ELSEWHERE` says."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__ = [str(folder)]

    def __getattr__(self, name: str) -> Any:
        home = ELSEWHERE.get(self.__name__.removeprefix("easyeditor"), {}).get(name)
        if home is None:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"easyeditor{home}"), name)


class _TrainDict(ModuleType):
    """`ALG_TRAIN_DICT` with MEND, whose module is imported when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name != "ALG_TRAIN_DICT":
            raise AttributeError(name)
        return {"MEND": importlib.import_module("easyeditor.trainer.algs.MEND").MEND}


class _Unused(ModuleType):
    """A module that is absent: its names may be imported, but nothing can be done with them."""

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
