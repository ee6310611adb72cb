"""YAML with source locations, and validation that reports a mistake in one line.

Read files with `read_yaml` or `read_chain`, overlay them with `merge`, check them with `validate`.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from harness.commands import list_around
from harness.errors import UserError, did_you_mean

Keys: TypeAlias = tuple[str | int, ...]
Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML value and its source location.

    Attributes:
        value: a mapping of `Located`, a list of `Located`, or a scalar.
        file: path as given by the user.
        line: 1-based line; for a value in a mapping, the line of its key.
    """

    value: Any
    file: Path
    line: int

    @property
    def where(self) -> str:
        """`file:line`, as editors understand it."""
        return f"{self.file}:{self.line}"

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def at(self, keys: Keys) -> "Located":
        """The deepest value along `keys`; missing keys are skipped."""
        node = self
        for key in keys:
            is_key = isinstance(node.value, dict) and key in node.value
            is_index = isinstance(node.value, list) and isinstance(key, int) and key < len(node.value)
            if is_key or is_index:
                node = node.value[key]
        return node

    def replaced(self, keys: Keys, leaf: "Located") -> "Located":
        """Copy with `leaf` at `keys`, creating missing mappings along the path.

        Raises:
            UserError: if the path leads through something other than a mapping.
        """
        if not keys:
            return leaf
        head, rest = keys[0], keys[1:]
        if not isinstance(self.value, dict) or not isinstance(head, str):
            raise UserError(f"{leaf.where}: there is no key '{head}' in '{self.plain()}' ({self.where})")
        child = self.value.get(head, Located({}, leaf.file, leaf.line))
        return Located({**self.value, head: child.replaced(rest, leaf)}, self.file, self.line)


class StrictModel(BaseModel):
    """Base of all YAML schemas: unknown keys are errors, no type coercion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


REMEMBERED = 64
"""Files whose content is parsed once: a sweep asks for the same hyper-parameter files thousands of times."""


@contextlib.contextmanager
def generated(file: Path) -> Iterator[None]:
    """Leave the places in a file that no user has written out of errors inside the body."""
    try:
        yield
    except UserError as error:
        raise type(error)(without_places(error.message, file), fix=error.fix) from error


def without_places(text: str, file: Path) -> str:
    """A message without the places in a file at its start."""
    return re.sub(rf"^{re.escape(str(file))}:\d+: ", "", text)


def read_yaml(path: Path) -> Located:
    """Read one YAML mapping without executing anything in it.

    Raises:
        UserError: for a file that is missing, is not YAML, is not a mapping, has duplicate or non-string keys, or contains
            an anchor that refers to itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", fix=list_around(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    return _parsed(path, text)


@lru_cache(maxsize=REMEMBERED)
def _parsed(path: Path, text: str) -> Located:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = _located(loader, node, path, 1, ()) if node is not None else Located(None, path, 1)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document.value, dict):
        raise UserError(f"{path}:1: expected keys with values, found {kind_of(document.value)}")
    return document


def read_chain(path: Path, installed: Path | None = None) -> list[Located]:
    """Read a file and everything it extends, the base first, each without the key `extends`.

    Args:
        path: the file.
        installed: folder where a base is looked up that is not next to the file which extends it.

    Raises:
        UserError: for a missing base or a circular `extends`, and as `read_yaml`.
    """
    chain: list[Located] = []
    seen: list[Path] = []
    current, asked_by = path, ""
    while True:
        if asked_by and not current.is_file():
            raise UserError(f"{asked_by}: extends: no such file: {current}", fix=list_around(current))
        document = read_yaml(current)
        seen.append(current.resolve())
        base = document.value.get("extends")
        rest = {key: item for key, item in document.value.items() if key != "extends"}
        chain.insert(0, Located(rest, document.file, document.line))
        if base is None:
            return chain
        if not isinstance(base.value, str):
            raise UserError(f"{base.where}: extends: expected the name of one file, found {kind_of(base.value)}")
        current, asked_by = _relative_to(current, base.value), base.where
        if installed is not None and not current.is_file() and (installed / base.value).is_file():
            current = installed / base.value
        if current.resolve() in seen:
            circle = " → ".join(file.name for file in [*seen, current])
            raise UserError(f"{base.where}: extends: files extend each other in a circle: {circle}")


def merge(base: Located, over: Located) -> Located:
    """Overlay `over` on `base`: mappings are merged key by key; everything else, including lists, is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, item in over.value.items():
        merged[key] = merge(merged[key], item) if key in merged else item
    return Located(merged, over.file, over.line)


def validate(schema: type[Schema], document: Located, *, fix: str | None = None) -> Schema:
    """Validate a document against `schema` and return the instance.

    Raises:
        UserError: one line about the first mistake; a misspelt key is reported before the key that is missing because of
            it.
    """
    try:
        return schema.model_validate(document.plain())
    except ValidationError as error:
        findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        text = f"{_where(document, findings[0])}: {_sentence(schema, document, findings[0])}{more}"
        raise UserError(text, fix=fix) from None


def complaint(finding: ErrorDetails) -> str:
    """Describe what is wrong with a value, without its key."""
    kind, found = finding["type"], finding["input"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(finding["ctx"]["expected"]))
        return f"'{found}' is not one of {', '.join(choices)}{did_you_mean(str(found), set(choices))}"
    if kind == "too_short":
        return "is empty; it needs at least one entry"
    shown = f"{kind_of(found)} '{found}'" if isinstance(found, str | int | float) else kind_of(found)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {shown}"
    message = finding["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{message[0].lower()}{message[1:]}" + ("" if kind == "value_error" else f", found {shown}")


def kind_of(value: Any) -> str:
    """Describe the type of a value for a message."""
    if value is None:
        return "nothing"
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


class _Loader(yaml.SafeLoader):
    """Safe loader that also parses `1e-4` as a number, as in YAML 1.2 but not in PyYAML."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")}


def _located(loader: _Loader, node: yaml.Node, file: Path, line: int, parents: tuple[yaml.Node, ...]) -> Located:
    if node in parents:
        raise UserError(f"{file}:{line}: an anchor refers to itself")
    inside = (*parents, node)
    if node.tag not in _PLAIN_TAGS:
        raise UserError(f"{file}:{line}: the tag '{node.tag}' is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Located] = {}
        for key_node, item in node.value:
            at = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise UserError(f"{file}:{at}: a key must be text, found '{getattr(key_node, 'value', key_node.tag)}'")
            key = key_node.value
            if key in mapping:
                raise UserError(f"{file}:{at}: duplicate key '{key}', first on line {mapping[key].line}")
            mapping[key] = _located(loader, item, file, at, inside)
        return Located(mapping, file, line)
    if isinstance(node, yaml.SequenceNode):
        items = [_located(loader, item, file, item.start_mark.line + 1, inside) for item in node.value]
        return Located(items, file, line)
    return Located(loader.construct_object(node), file, line)


def _relative_to(file: Path, name: str) -> Path:
    """Resolve a file relative to another, removing `..` where possible to keep messages short."""
    folder = file.parent
    while name.startswith("../") and folder.name not in {"", ".."}:
        folder, name = folder.parent, name.removeprefix("../")
    return folder / name


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _sentence(schema: type[BaseModel], document: Located, finding: ErrorDetails) -> str:
    """Describe the mistake and its key, with a suggestion but without the location."""
    keys = finding["loc"]
    inside = _real(document, keys[:-1])
    if finding["type"] == "extra_forbidden":
        guess = did_you_mean(str(keys[-1]), _known_keys(schema, inside))
        return f"unknown key '{keys[-1]}' in {_dotted(inside) or 'the file'}{guess}"
    if finding["type"] == "missing":
        return f"missing key '{keys[-1]}' in {_dotted(inside) or 'the file'}"
    key = _dotted(_real(document, keys))
    return f"{key}: {complaint(finding)}" if key else complaint(finding)


def _dotted(keys: Iterable[str | int]) -> str:
    """Format `('methods', 2, 'hparams', 'lr')` as `methods[2].hparams.lr`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _where(document: Located, finding: ErrorDetails) -> str:
    keys = finding["loc"][:-1] if finding["type"] == "missing" else finding["loc"]
    return document.at(keys).where


def _real(document: Located, keys: Keys) -> Keys:
    """Drop the keys that pydantic adds for the members of a union."""
    node, real = document, []
    for key in keys:
        below = node.at((key,))
        if below is not node:
            node = below
            real.append(key)
    return tuple(real)


def _known_keys(schema: type[BaseModel], keys: Keys) -> set[str]:
    """Field names of the model at `keys` in `schema`."""
    current: type[BaseModel] = schema
    for key in keys:
        if isinstance(key, str) and key in current.model_fields:
            current = _model_in(current.model_fields[key].annotation) or current
    return set(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
