"""Values that follow from the model, for files that serve any model.

Layers as a share of the depth: `{depth: 0.85}`, `{depth: [0.1, 0.25]}`. Feed-forward matrices by their part, whatever they are
called: `{mlp: all}`, `{mlp: last}` (the one that writes to the residual stream).
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

_Share = Annotated[float, Field(ge=0, le=1, strict=False)]
_FORM: TypeAdapter[float | tuple[float, float]] = TypeAdapter(_Share | tuple[_Share, _Share])


def is_relative(value: Any) -> bool:
    """Whether a value has one of the forms of this module."""
    return isinstance(value, dict) and set(value) in ({"depth"}, {"mlp"})


def absolute(spec: "ModelSpec", value: Any) -> Any:
    """The value that a relative value has for a model.

    Args:
        spec: the model.
        value: a relative value. One share of the depth means one layer; a pair means all layers from the first share to the
            second.

    Raises:
        ValueError: if it is not well-formed, with the reason.
        UserError: for matrices of a model whose layout is unknown.
    """
    ((key, relative),) = value.items()
    return _layers(spec.n_layers, relative) if key == "depth" else _matrices(spec, relative)


def layer_at(share: float, n_layers: int) -> int:
    """The layer at a share of the depth: 0 is the first block and 1 the last."""
    return round(share * (n_layers - 1))


def _layers(n_layers: int, share: Any) -> int | list[int]:
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


def _matrices(spec: "ModelSpec", part: Any) -> list[str]:
    if part not in ("all", "last"):
        raise ValueError(f"mlp: expected all or last, found {part!r}")
    names = list(spec.layout.matrices)
    return names if part == "all" else names[-1:]
