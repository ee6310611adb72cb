"""The search space of a method: its hyper-parameters and their ranges, from its `search.yaml`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from harness.errors import UserError, did_you_mean
from harness.suite.relative import layer_at
from harness.yaml_source import StrictModel, read_yaml, validate

if TYPE_CHECKING:
    from optuna.trial import Trial

Pair = tuple[float, float]


class Range(StrictModel):
    """Values that one hyper-parameter may take; exactly one kind is given.

    Attributes:
        log: bounds of a number that is searched on a logarithmic scale; both have the same sign.
        uniform: bounds of a number.
        integer: bounds of a whole number, inclusive.
        choice: a few values of any type.
        depth: bounds of a layer, as shares of the model's depth: 0 is the first block and 1 the last.
        count: with `depth`, the number of consecutive layers of a hyper-parameter that takes a list; default: as many as the
            value in use has.
    """

    log: Pair | None = Field(None, strict=False)
    uniform: Pair | None = Field(None, strict=False)
    integer: tuple[int, int] | None = Field(None, strict=False)
    choice: list[Any] | None = Field(None, min_length=2)
    depth: Pair | None = Field(None, strict=False)
    count: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        bounds = [each for each in (self.log, self.uniform, self.integer, self.depth) if each is not None]
        if len(bounds) + (self.choice is not None) != 1:
            raise ValueError("expected exactly one of log, uniform, integer, choice and depth")
        if any(low >= high for low, high in bounds):
            raise ValueError("expected the lower bound first")
        if self.log and self.log[0] * self.log[1] <= 0:
            raise ValueError("bounds of a logarithmic range must have the same sign and not be 0")
        if self.depth and not (self.depth[0] >= 0 and self.depth[1] <= 1):
            raise ValueError("depth is between 0 (the first block) and 1 (the last)")
        return self


@dataclass(frozen=True, slots=True)
class Space:
    """The ranges of one method on one model.

    Attributes:
        ranges: by hyper-parameter.
        n_layers: depth of the model.
        widths: number of consecutive layers of each hyper-parameter whose value is a list of layers.
    """

    ranges: Mapping[str, Range]
    n_layers: int
    widths: Mapping[str, int]

    def suggest(self, trial: "Trial") -> dict[str, Any]:
        """Draw a value of each hyper-parameter."""
        return {key: _rounded(self._suggest(trial, key, each)) for key, each in self.ranges.items()}

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Express values as `suggest` would have drawn them.

        Returns:
            Optuna's parameters, or None if a value is outside its range.
        """
        found = {key: self._parameter(key, each, values[key]) for key, each in self.ranges.items()}
        return None if None in found.values() else found

    def identity(self) -> dict[str, Any]:
        """Identity of a study: trials with the same one belong together. JSON-like."""
        ranges = {key: each.model_dump(mode="json", exclude_none=True) for key, each in self.ranges.items()}
        return {"ranges": ranges, "n_layers": self.n_layers, "widths": dict(self.widths)}

    def _suggest(self, trial: "Trial", key: str, each: Range) -> Any:
        if each.choice is not None:
            return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in each.choice]))
        if each.depth is not None:
            first = trial.suggest_int(key, *self._layers(key, each.depth))
            return list(range(first, first + self.widths[key])) if key in self.widths else first
        if each.integer is not None:
            return trial.suggest_int(key, *each.integer)
        if each.uniform is not None:
            return trial.suggest_float(key, *each.uniform)
        assert each.log is not None
        low, high = sorted(map(abs, each.log))
        return (1 if each.log[0] > 0 else -1) * trial.suggest_float(key, low, high, log=True)

    def _parameter(self, key: str, each: Range, value: Any) -> Any:
        if each.choice is not None:
            return next((json.dumps(choice) for choice in each.choice if choice == value), None)
        if each.depth is not None:
            layers = list(value) if key in self.widths else [value]
            if layers != list(range(layers[0], layers[0] + self.widths.get(key, 1))):
                return None
            return _within(layers[0], self._layers(key, each.depth))
        bounds = each.integer or each.uniform or each.log
        assert bounds is not None
        if not isinstance(value, int | float) or _within(value, bounds) is None:
            return None
        return abs(value) if each.log else value

    def _layers(self, key: str, depth: Pair) -> tuple[int, int]:
        """First and last layer with which the value may begin."""
        last = self.n_layers - self.widths.get(key, 1)
        low, high = (min(layer_at(share, self.n_layers), last) for share in depth)
        return low, high


def _rounded(value: Any) -> Any:
    """Three digits of a number: more would say nothing and are hard to read in a file."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _within(value: Any, bounds: tuple[float, float]) -> Any:
    return value if bounds[0] <= value <= bounds[1] else None


def read_space(file: Path, values: Mapping[str, Any], n_layers: int) -> Space:
    """Read a search space.

    Args:
        file: maps hyper-parameters to ranges.
        values: the present values of the method's hyper-parameters, which say what may be searched.
        n_layers: depth of the model.

    Raises:
        UserError: for an unknown hyper-parameter, an invalid range, or more layers than the model has.
    """
    document = read_yaml(file)
    ranges: dict[str, Range] = {}
    widths: dict[str, int] = {}
    for key, entry in document.value.items():
        if key not in values:
            raise UserError(f"{entry.where}: unknown hyper-parameter '{key}'{did_you_mean(key, set(values))}")
        each = ranges[key] = validate(Range, entry)
        if each.depth and isinstance(values[key], Mapping):
            raise UserError(
                f"{entry.where}: {key}: cannot be searched, because its value {json.dumps(values[key])} is chosen when a cell runs",
                fix=f"in the file of hyper-parameters, {key}: {{value: {{depth: …}}, source: …}}",
            )
        if each.depth and isinstance(values[key], list | tuple):
            widths[key] = each.count or len(values[key])
            if widths[key] > n_layers:
                raise UserError(f"{entry.where}: {key}: {widths[key]} layers, but the model has only {n_layers}")
    if not ranges:
        raise UserError(f"{file}: no ranges")
    return Space(ranges, n_layers, widths)
