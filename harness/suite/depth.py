"""Layers as a share of a model's depth, for files that serve models of any depth: `{depth: 0.85}`, `{depth: [0.1, 0.25]}`."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

_KEY = "depth"
_Share = Annotated[float, Field(ge=0, le=1, strict=False)]
_FORM: TypeAdapter[float | tuple[float, float]] = TypeAdapter(_Share | tuple[_Share, _Share])


def is_relative(value: Any) -> bool:
    """Whether a value is a share of the depth."""
    return isinstance(value, dict) and set(value) == {_KEY}


def layer_at(share: float, n_layers: int) -> int:
    """The layer at a share of the depth: 0 is the first block and 1 the last."""
    return round(share * (n_layers - 1))


def layers_of(n_layers: int, value: Any) -> int | list[int]:
    """Layers of a model at a share of its depth.

    Args:
        n_layers: depth of the model.
        value: a relative value. One share means one layer; a pair means all layers from the first share to the second.

    Raises:
        ValueError: if it is neither, or not between 0 and 1.
    """
    share = value[_KEY]
    try:
        checked = _FORM.validate_python(share)
    except ValidationError:
        raise ValueError(f"depth: expected a number from 0 to 1, or two, found {share!r}") from None
    if isinstance(checked, float):
        return layer_at(checked, n_layers)
    low, high = (layer_at(each, n_layers) for each in checked)
    if low > high:
        raise ValueError(f"depth: expected the smaller share first, found {share!r}")
    return list(range(low, high + 1))
