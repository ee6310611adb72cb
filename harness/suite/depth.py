"""Layers as a share of a model's depth, for files that serve models of any depth: `{depth: 0.85}`, `{depth: [0.1, 0.25]}`."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from harness.models import catalogue

KEY = "depth"
_Share = Annotated[float, Field(ge=0, le=1, strict=False)]
_FORM: TypeAdapter[float | tuple[float, float]] = TypeAdapter(_Share | tuple[_Share, _Share])


def is_relative(value: Any) -> bool:
    """Whether a value is a share of the depth."""
    return isinstance(value, dict) and set(value) == {KEY}


def layers_of(model: str, share: Any) -> int | list[int]:
    """Layers of a model at a share of its depth: 0 is its first block and 1 its last.

    Args:
        model: name of the model.
        share: one share, for one layer, or the first and the last of a range, for all layers from one to the other.

    Raises:
        ValueError: if it is neither, or not between 0 and 1.
        UserError: for an unknown model.
    """
    try:
        checked = _FORM.validate_python(share)
    except ValidationError:
        raise ValueError(f"depth: expected a number from 0 to 1, or two, found {share!r}") from None
    last = catalogue.entry(model).n_layers - 1
    if isinstance(checked, float):
        return round(checked * last)
    low, high = (round(each * last) for each in checked)
    if low > high:
        raise ValueError(f"depth: expected the smaller share first, found {share!r}")
    return list(range(low, high + 1))
