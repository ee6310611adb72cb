"""Edit the plug-in with other registered methods: which are allowed, what they need, and their part of the edit's identity."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.api import Advance, ArtifactSpec, Clock, Context, Method
from harness.errors import UserError, did_you_mean
from harness.records import DataRef, Dataset
from harness.suite.hparams import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

TRAINED = ("full", "lora")
"""Editors that are OnceEdit's own training of the plug-in, with all weights or low-rank updates."""

STRIDES = 4
"""In how many strides the progress of another method is passed on (see `Lent`)."""


def identity(name: str, plugin: "ModelRef") -> Mapping[str, Any]:
    """Name, version and hyper-parameters of a method as an editor of the plug-in: everything that determines its edit.

    Args:
        name: `method` or `method.variant`, as entries of a suite are labelled.
        plugin: the plug-in; the method's file for it is read.

    Raises:
        UserError: if the method is unknown, does not edit, or does not change the weights, so that there would be no
            edited plug-in to save; or if it has no such variant for the plug-in.
    """
    method, dot, variant = name.partition(".")
    known = registry.methods.all()
    able = [one for one, cls in known.items() if cls.spec.is_in_weights and cls.spec.edits]
    if method not in able:
        choices = dict.fromkeys([*TRAINED, *able])
        if method in known:
            reason = f"a {known[method].spec.family} method does not edit the weights"
        else:
            reason = f"there is no such editor{did_you_mean(name, choices)}"
        raise UserError(
            f"onceedit cannot edit its plug-in with '{name}': {reason}", fix=f"editor: one of {', '.join(choices)}"
        )
    values = resolve(method, plugin.name, {}, variant=variant if dot else None, spec=plugin.spec).values
    made = {"name": method, "version": known[method].spec.version, "hparams": values}
    code = registry.code_of(editor(made))
    return {**made, **({"code": code} if code else {})}


def editor(made_from: Mapping[str, Any]) -> Method:
    """Create the method that an identity describes; `traced` hyper-parameters are not decided yet."""
    cls = registry.find_method(made_from["name"])
    return cls(cls.Hparams.model_validate(made_from["hparams"]))


def needs(method: Method, plugin: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
    """The artifacts that a method needs to edit the plug-in, by role, including those that decide its hyper-parameters.

    Raises:
        UserError: if it cannot edit this plug-in, with the reason.
    """
    deciding = {name: choice.artifact(plugin, data, seed) for name, choice in method.hparams.choices().items()}
    return {**deciding, **method.artifacts(plugin, data, seed)}


def decided(method: Method, artifacts: "Mapping[str, Path]") -> Method:
    """The method with all hyper-parameters decided by its finished artifacts."""
    hparams, _ = method.hparams.decided(artifacts)
    return type(method)(hparams)


class Lent:
    """The `Context` of an edit stage, lent to another method.

    FLOPs of an artifact are counted in a run that ends after a few steps of its progress bar. The bar of another method is not
    the whole edit stage, so its steps are passed on in a few strides, and the run continues to `[WEIGHT]`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.device, self.seed = context.device, context.seed

    @property
    def clock(self) -> Clock:
        """See `Context`."""
        return self._context.clock

    def load_model(self, ref: "ModelRef") -> "LoadedModel":
        """See `Context`."""
        return self._context.load_model(ref)

    def load_data(self, ref: DataRef) -> Dataset:
        """See `Context`."""
        return self._context.load_data(ref)

    def artifact(self, spec: ArtifactSpec) -> "Path":
        """See `Context`."""
        return self._context.artifact(spec)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """A bar that advances by at least a stride at a time."""
        stride, ahead, done = max(1, -(-total // STRIDES)), 0, 0
        with self._context.progress(description, total) as advance:

            def strides(steps: int = 1) -> None:
                nonlocal ahead, done
                ahead, done = ahead + steps, done + steps
                if ahead >= stride or done == total:
                    advance(ahead)
                    ahead = 0

            yield strides
