"""Hyper-parameters of a method on a model: from a file in which every value names its source, and from the suite.

For method `m` and model `tiny/llama` the first of these that exists is read from `methods/hparams/m/`:
`tiny_llama.yaml`, `tiny.yaml` (models of the zoo only), `default.yaml`. Without any, the class of the method must have a
default for every value.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import methods
from harness import registry
from harness.errors import UserError, did_you_mean
from harness.yaml_source import Located, complaint, read_chain, validate

FOLDER = Path(methods.__file__).parent / "hparams"


@dataclass(frozen=True, slots=True)
class ResolvedHparams:
    """Values that passed the method's own check, and where each of them comes from.

    Attributes:
        values: JSON-like; part of a cell's identity.
        sources: a sentence per key: the `source:` of the file, `suite FILE:LINE`, or `default`.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def resolve(
    method: str,
    model: str,
    overrides: Mapping[str, Any],
    *,
    variant: str | None = None,
    where: Mapping[str, str] | None = None,
    at: str = "",
    neighbours: Collection[str] = (),
    backend: str = "native",
    folder: Path = FOLDER,
) -> ResolvedHparams:
    """Lay defaults of the class, file, what the backend has instead, variant and overrides over each other, in this order.

    Args:
        method, model: names; a method that is planned but not built is checked against its file only, if it has one.
        overrides: values of the suite.
        variant: a named set of values of the file.
        where: `file:line` of each override, for messages and sources.
        at: `file:line` of the entry of the suite, for messages about all else.
        neighbours: words beside which options are written, one of which a misspelt option may have meant.
        backend: whose implementation they are for; all have the files of our own.
        folder: the parent of the methods' folders.

    Raises:
        UserError: for an unknown key, variant or type, or a value that is missing, with its place.
    """
    where = where or {}
    here = f"{at}: " if at else ""
    path = find_file(method, model, folder)
    file = _read(path) if path else _File({}, {})
    if variant is not None and variant not in file.variants:
        guess = did_you_mean(variant, set(file.variants))
        there = f"{path} has: {', '.join(file.variants) or 'none'}" if path else f"no file for {model}"
        raise UserError(f"{here}method '{method}' has no variant '{variant}'{guess}; {there}")
    cls = registry.implementations(backend).all().get(method)
    given = {
        key: _Named(value, f"backend {backend}", f"backend {backend}")
        for key, value in (cls.preset if cls else {}).items()
    }
    named = {**file.values, **given, **(file.variants[variant] if variant is not None else {})}
    places = {key: value.where for key, value in named.items()} | dict(where)
    values = {key: value.value for key, value in named.items()} | dict(overrides)
    sources = {key: value.source for key, value in named.items()}
    sources |= {key: f"suite {where[key]}" if key in where else "suite" for key in overrides}

    known = set(cls.Hparams.model_fields) if cls else set(named)
    for key in values:
        if key not in known and (cls or named):
            owner = f"method '{method}'" if known else f"method '{method}', which has none"
            guess = did_you_mean(key, {*known, *neighbours})
            raise UserError(f"{_prefix(places, key, here)}unknown option '{key}' of {owner}{guess}")
    if cls is None:
        return ResolvedHparams(values, sources)
    try:
        checked = cls.Hparams.model_validate_json(json.dumps(values, default=str), strict=True).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(_complaint(error, places, here, method, model)) from None
    return ResolvedHparams(checked, {key: sources.get(key, "default") for key in checked})


def find_file(method: str, model: str, folder: Path = FOLDER) -> Path | None:
    """The most specific file for a method on a model, or None."""
    names = [model.replace("/", "_"), *([model.partition("/")[0]] if "/" in model else []), "default"]
    candidates = [folder / method / f"{name}.yaml" for name in names]
    return next((path for path in candidates if path.is_file()), None)


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: Any
    source: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class _Named:
    value: Any
    source: str
    where: str


@dataclass(frozen=True, slots=True)
class _File:
    values: Mapping[str, _Named]
    variants: Mapping[str, Mapping[str, _Named]]


def _read(path: Path) -> _File:
    """A file and its bases. Each file is checked alone, so that no value inherits the source of another."""
    values: dict[str, _Named] = {}
    variants: dict[str, dict[str, _Named]] = {}
    for document in read_chain(path):
        entries = dict(document.value)
        found = entries.pop("variants", Located({}, document.file, 1))
        values |= _values(entries)
        if not isinstance(found.value, dict):
            raise UserError(f"{found.where}: variants: expected a mapping of names")
        for name, variant in found.value.items():
            if not isinstance(variant.value, dict):
                raise UserError(f"{variant.where}: variants.{name}: expected a mapping of hyper-parameters")
            variants[name] = variants.get(name, {}) | _values(variant.value)
    return _File(values, variants)


def _values(entries: Mapping[str, Located]) -> dict[str, _Named]:
    named = {}
    for key, entry in entries.items():
        if not isinstance(entry.value, dict):
            raise UserError(f"{entry.where}: {key}: expected {{value: ..., source: ...}}")
        checked = validate(_Value, entry)
        named[key] = _Named(checked.value, checked.source, entry.where)
    return named


def _complaint(error: ValidationError, places: Mapping[str, str], here: str, method: str, model: str) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        file = f"methods/hparams/{method}/{model.replace('/', '_')}.yaml"
        return f"{here}method '{method}' has no value of '{key}' for {model}: write {file}"
    return f"{_prefix(places, key, here)}{key or method}: {complaint(first)}"


def _prefix(places: Mapping[str, str], key: str, here: str) -> str:
    return f"{places[key]}: " if key in places else here
