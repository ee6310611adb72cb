"""Pydantic's findings about a YAML file as one sentence: file, line, key, what is wrong, what was probably meant."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import UserError, did_you_mean
from harness.yaml_source import Keys, Located, kind_of

Schema = TypeVar("Schema", bound=BaseModel)

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


def validate(schema: type[Schema], document: Located, *, fix: str | None = None) -> Schema:
    """The document as an instance of `schema`.

    Raises:
        UserError: one line about the first finding; a misspelt key is told before the key that is missing for it.
    """
    try:
        return schema.model_validate(document.plain())
    except ValidationError as error:
        findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        text = f"{_where(document, findings[0])}: {sentence(schema, document, findings[0])}{more}"
        raise UserError(text, fix=fix) from None


def sentence(schema: type[BaseModel], document: Located, finding: ErrorDetails) -> str:
    """What is wrong with which key, with a suggestion, without the position."""
    keys = finding["loc"]
    inside = _real(document, keys[:-1])
    if finding["type"] == "extra_forbidden":
        guess = did_you_mean(str(keys[-1]), _known_keys(schema, inside))
        return f"unknown key '{keys[-1]}' in {dotted(inside) or 'the file'}{guess}"
    if finding["type"] == "missing":
        return f"the key '{keys[-1]}' is missing in {dotted(inside) or 'the file'}"
    key = dotted(_real(document, keys))
    return f"{key}: {complaint(finding)}" if key else complaint(finding)


def complaint(finding: ErrorDetails) -> str:
    """What is wrong with a value, without its key."""
    kind, found = finding["type"], finding["input"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(finding["ctx"]["expected"]))
        return f"'{found}' is none of {', '.join(choices)}{did_you_mean(str(found), set(choices))}"
    if kind == "too_short":
        return "is empty; it needs at least one entry"
    shown = f"{kind_of(found)} '{found}'" if isinstance(found, str | int | float) else kind_of(found)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {shown}"
    message = finding["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{message[0].lower()}{message[1:]}" + ("" if kind == "value_error" else f", found {shown}")


def dotted(keys: Iterable[str | int]) -> str:
    """`('methods', 2, 'hparams', 'lr')` as `methods[2].hparams.lr`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _where(document: Located, finding: ErrorDetails) -> str:
    keys = finding["loc"][:-1] if finding["type"] == "missing" else finding["loc"]
    return document.at(keys).where


def _real(document: Located, keys: Keys) -> Keys:
    """`keys` without those that pydantic put in for the members of a union."""
    node, real = document, []
    for key in keys:
        below = node.at((key,))
        if below is not node:
            node = below
            real.append(key)
    return tuple(real)


def _known_keys(schema: type[BaseModel], keys: Keys) -> set[str]:
    """Names of the fields of the model that is reached from `schema` along `keys`."""
    current: type[BaseModel] = schema
    for key in keys:
        if isinstance(key, str) and key in current.model_fields:
            current = _model_in(current.model_fields[key].annotation) or current
    return set(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
