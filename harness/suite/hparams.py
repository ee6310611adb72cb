"""Hyper-parameters of a method on a model: from a file in which every value names its source, and from the suite.

The files of a method are in `hparams/<method>/`: in the working directory, then in the top-level package that the method's
class comes from or next to the single file that defines it. For the model `tiny/llama` the first of these that exists is read:
`tiny_llama.yaml`, `tiny.yaml` (the family: the part before the slash), `llama.yaml` (the `model_type` of its configuration),
`default.yaml`. Without any, the class of the method must have a default for every value. Values
may follow from the model's depth and layout (see `harness.suite.relative`).

`search.yaml` holds the ranges of `harness tune`.
"""

import inspect
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import registry
from harness.commands import harness_command
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.files import write_bytes
from harness.models import catalogue
from harness.models.spec import ModelSpec
from harness.suite.relative import absolute, is_relative
from harness.yaml_source import Located, complaint, read_chain, read_yaml, validate

if TYPE_CHECKING:
    from harness.api import Method


SEARCH = "search.yaml"
"""Among the files of a method, the one with the ranges that `harness tune` searches."""


@dataclass(frozen=True, slots=True)
class ResolvedHparams:
    """Values that passed the method's own check, and where each of them comes from.

    Attributes:
        values: JSON-like; part of a cell's identity.
        sources: a sentence per key: the `source:` of the file, `suite FILE:LINE`, or `default`.
        variants: names of the file's variants.
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    variants: tuple[str, ...] = ()


def resolve(
    method: str,
    model: str,
    overrides: Mapping[str, Any],
    *,
    variant: str | None = None,
    where: Mapping[str, str] | None = None,
    at: str = "",
    neighbours: Collection[str] = (),
    backend: str = registry.NATIVE,
    folder: Path | None = None,
    spec: ModelSpec | None = None,
) -> ResolvedHparams:
    """Overlay, in this order: defaults of the class, file, the backend's own values, variant, overrides.

    Args:
        method, model: names.
        overrides: values of the suite.
        variant: a named set of values of the file.
        where: `file:line` of each override, for messages and sources.
        at: `file:line` of the entry of the suite, for messages about all else.
        neighbours: words next to which options are written, one of which a misspelt option may have meant.
        backend: whose implementation of the method they are for.
        folder: of the method's files, if not `folders_of` its class.
        spec: what is known about the model; default: what the catalogue says.

    Raises:
        UserError: for an unknown method, key, variant or type, with its place.
        UnavailableError: for a value or a variant that the method has no file with for this model.
    """
    where = where or {}
    here = f"{at}: " if at else ""
    cls = registry.find_method(method, backend)
    folders = [folder] if folder else folders_of(cls)
    known = spec or catalogue.entry(model).spec
    path = find_file(folders, model, known.architecture)
    file = _read(path, folders[-1]) if path else _File({}, {})
    if variant is not None and variant not in file.variants:
        refusal = UnavailableError if _is_variant_elsewhere(variant, folders) else UserError
        guess = did_you_mean(variant, set(file.variants))
        there = f"{_shown(path)} has: {', '.join(file.variants) or 'none'}" if path else f"no file for {model}"
        raise refusal(f"{here}method '{method}' has no variant '{variant}'{guess}; {there}")
    given = {key: _Named(value, f"backend {backend}", f"backend {backend}") for key, value in cls.preset.items()}
    named = {**file.values, **given, **(file.variants[variant] if variant is not None else {})}
    places = {key: value.where for key, value in named.items()} | dict(where)
    values = {key: value.value for key, value in named.items()} | dict(overrides)
    sources = {key: value.source for key, value in named.items()}
    sources |= {key: f"suite {where[key]}" if key in where else "suite" for key in overrides}
    for key in [key for key, value in values.items() if is_relative(value)]:
        try:
            values[key] = absolute(known, values[key])
        except ValueError as error:
            raise UserError(f"{_prefix(places, key, here)}{key}: {error}") from None

    allowed = set(cls.Hparams.model_fields)
    for key in values:
        if key not in allowed:
            owner = f"method '{method}'" if allowed else f"method '{method}', which has none"
            guess = did_you_mean(key, {*allowed, *neighbours})
            message = f"{_prefix(places, key, here)}unknown option '{key}' of {owner}{guess}"
            shown = harness_command("hparams", method, *([model] if model in catalogue.CATALOGUE else []))
            raise UserError(message, fix=shown if key in overrides and not guess else None)
        try:
            json.dumps(values[key], default=str, allow_nan=False)
        except ValueError:
            text = f"{_prefix(places, key, here)}{key}: expected finite numbers, found {values[key]}"
            raise UserError(text) from None
    try:
        checked = cls.Hparams.model_validate_json(json.dumps(values, default=str), strict=True).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] != "missing":
            raise UserError(f"{_prefix(places, key, here)}{key or method}: {complaint(first)}") from None
        lacking, own = f"{here}method '{method}' has no value of '{key}' for {model}", own_file(folders, model)
        if path is None or not _is_same(path, own):
            raise UnavailableError(f"{lacking}: write {own}") from None
        base = find_file(folders, model, known.architecture, besides=path)
        is_alone = base is not None and len(read_chain(path, folders[-1])) == 1
        extended = f"extends: {_as_base(base, path, folders[-1])} as its first line" if base and is_alone else None
        raise UnavailableError(f"{lacking} in {own}", fix=extended or f"{key}: {{value: …, source: …}}") from None
    return ResolvedHparams(checked, {key: sources.get(key, "default") for key in checked}, tuple(file.variants))


def folders_of(method: "type[Method]") -> list[Path]:
    """Folders for the files of a method, whether they exist or not: the user's, then the method's own."""
    package = sys.modules.get(method.__module__.partition(".")[0])
    paths = list(getattr(package, "__path__", []))  # of a single file, a plug-in, there are none
    home = Path(paths[0]) if paths else Path(inspect.getfile(method)).parent
    return [Path("hparams", method.spec.name), home / "hparams" / method.spec.name]


def find_file(folders: Sequence[Path], model: str, architecture: str = "", besides: Path | None = None) -> Path | None:
    """The most specific of a method's files for a model, or None.

    Args:
        folders: where to look; of two files with one name, that in the first folder is taken.
        model: name of the model.
        architecture: its `model_type`.
        besides: a file that does not count.
    """
    files = (folder / name for name in _file_names(model, architecture) for folder in folders)
    return next((file for file in files if file.is_file() and not (besides and _is_same(file, besides))), None)


def search_file(method: "type[Method]") -> Path | None:
    """The file with the ranges that `harness tune` searches by default, or None."""
    return next((file for folder in folders_of(method) if (file := folder / SEARCH).is_file()), None)


def own_file(folders: Sequence[Path], model: str) -> Path:
    """The file for this model alone: the user's if there is one or the method's folder is outside the working directory."""
    name = f"{_plain(model)}.yaml"
    inside = [folder for folder in folders if folder.is_relative_to(Path.cwd())]
    is_users = not inside or (folders[0] / name).is_file()
    return _shown((folders if is_users else inside)[0] / name)


def write_file(
    path: Path, base: Path | None, installed: Path, values: Mapping[str, Any], source: str, title: str
) -> None:
    """Write values that have one source on top of those in use.

    Args:
        path: where.
        base: file in use, or None. If it is the one to write, its other values and its variants are kept; else it is extended.
        installed: the method's own folder, whose files any file may extend by name.
        values: JSON-like, by hyper-parameter.
        source: a sentence.
        title: first line, a comment.
    """
    content: dict[str, Any] = {}
    if base is not None:
        content = read_yaml(path).plain() if _is_same(base, path) else {"extends": _as_base(base, path, installed)}
    content |= {key: {"value": value, "source": source} for key, value in values.items()}
    text = yaml.safe_dump(content, default_flow_style=None, sort_keys=False, allow_unicode=True, width=math.inf)
    write_bytes(path, f"# {title}\n{text}".encode())


def _as_base(base: Path, path: Path, installed: Path) -> str:
    """What a file says that it extends: a name where that is enough, so that both can be moved; else where the base is."""
    by_name = path.parent / base.name
    is_found = _is_same(base, by_name) or (_is_same(base, installed / base.name) and not by_name.is_file())
    return base.name if is_found and not _is_same(path, by_name) else str(base.resolve())


def _is_variant_elsewhere(variant: str, folders: Sequence[Path]) -> bool:
    """Whether a method has a variant for some other model."""
    files = (file for folder in folders for file in folder.glob("*.yaml") if file.name != SEARCH)
    return any(variant in _read(file, folders[-1]).variants for file in files)


def _is_same(file: Path, other: Path) -> bool:
    return file.resolve() == other.resolve()


def _plain(model: str) -> str:
    return model.replace("/", "_")


def _file_names(model: str, architecture: str) -> list[str]:
    """Names of the files that may have the values for a model, the most specific first."""
    families = [*([model.partition("/")[0]] if "/" in model else []), *([architecture] if architecture else [])]
    return [f"{name}.yaml" for name in (_plain(model), *families, "default")]


def _shown(path: Path) -> Path:
    """A path as short as it can be copied from a message."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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


_REMEMBERED: dict[tuple[Path, Path], tuple[dict[Path, int], _File]] = {}
"""What a file says, with the times of change of itself and its bases: a sweep asks for the same file thousands of times."""


def _read(path: Path, installed: Path) -> _File:
    """A file and its bases, which are looked up next to it and among the method's own."""
    changed, said = _REMEMBERED.get((path, installed), ({}, None))
    if said is None or any(not file.is_file() or file.stat().st_mtime_ns != time for file, time in changed.items()):
        chain = read_chain(path, installed)
        said = _checked(chain)
        _REMEMBERED[path, installed] = {each.file: each.file.stat().st_mtime_ns for each in chain}, said
    return said


def _checked(chain: Sequence[Located]) -> _File:
    """The values of a file and its bases. Each is checked separately, so that no value inherits the source of another."""
    values: dict[str, _Named] = {}
    variants: dict[str, dict[str, _Named]] = {}
    for document in chain:
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


def _prefix(places: Mapping[str, str], key: str, here: str) -> str:
    return f"{places[key]}: " if key in places else here
