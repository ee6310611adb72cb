"""The unedited model, the reference for every method."""

from harness.registry import register
from methods.common.unedited import UneditedMethod


@register("none", title="Unedited", family="reference", version=1, edits=False)
class Unedited(UneditedMethod):
    """The unedited baseline. Its reliability shows how many of the new facts the model predicts anyway."""
