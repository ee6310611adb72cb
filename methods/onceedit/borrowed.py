"""Using other registered methods to edit the plug-in: which are allowed, and how they enter the edit's identity."""

from collections.abc import Mapping
from typing import Any

from harness import registry
from harness.api import Method
from harness.errors import UserError, did_you_mean
from harness.suite.hparams import resolve

TRAINED = ("full", "lora")
"""Editors that are OnceEdit's own training of the plug-in, with all weights or low-rank updates."""


def identity(method: str, plugin: str) -> Mapping[str, Any]:
    """Name, version and hyper-parameters of a method as an editor of the plug-in: everything that determines its edit.

    Args:
        method: name in the registry.
        plugin: catalogue name of the plug-in, whose file in `methods/hparams/<method>/` is read.

    Raises:
        UserError: if the method is unknown, does not edit, or does not change the weights, so that there would be no
            edited plug-in to save.
    """
    known = registry.methods.all()
    able = [name for name, cls in known.items() if cls.spec.is_in_weights and cls.spec.edits]
    if method not in able:
        choices = [*TRAINED, *able]
        if method in known:
            reason = f"a {known[method].spec.family} method does not edit the weights"
        else:
            reason = f"there is no such editor{did_you_mean(method, choices)}"
        raise UserError(
            f"onceedit cannot edit its plug-in with '{method}': {reason}", fix=f"editor: one of {', '.join(choices)}"
        )
    values = resolve(method, plugin, {}).values
    made = {"name": method, "version": known[method].spec.version, "hparams": values}
    code = registry.code_of(editor(made))
    return {**made, **({"code": code} if code else {})}


def editor(made_from: Mapping[str, Any]) -> Method:
    """Create the method that an identity describes."""
    cls = registry.find_method(made_from["name"])
    return cls(cls.Hparams.model_validate(made_from["hparams"]))
