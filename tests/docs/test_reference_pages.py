"""Reference pages list what the code has: keys of suites and scales with their defaults, and methods."""

import json
import re

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness import registry
from harness.suite import schema
from tests.docs.pages import DOCS

FORMS = (
    schema.SuiteForm,
    schema.ModelForm,
    schema.LayoutForm,
    schema.MethodForm,
    schema.DataForm,
    schema.Blocks,
    schema.CapabilityForm,
    schema.JudgeForm,
    schema.ScaleForm,
    schema.CapForm,
    schema.Overlay,
    schema.DataOverlay,
)
"""In the order of the tables of docs/suites.md."""

_TABLE = re.compile(r"^\| key \| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)


def tables():
    """Default by key, for each table of keys."""
    bodies = _TABLE.findall((DOCS / "suites.md").read_text())
    return [dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", body, re.MULTILINE)) for body in bodies]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_page_on_suites_lists_every_key_with_its_default(form):
    found = dict(zip(FORMS, tables(), strict=True))[form]
    assert set(found) == set(form.model_fields)
    for key, field in form.model_fields.items():
        assert (found[key] == "required") == field.is_required(), key
        if field.default not in (PydanticUndefined, None, "") and not isinstance(field.default, BaseModel):
            assert found[key] == f"`{_as_yaml(field.default)}`", key


def _as_yaml(value):
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def test_the_page_on_methods_lists_every_method():
    rows = re.findall(r"^\| (`.*?`) \|", (DOCS / "methods" / "README.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(named) == sorted(registry.methods.names())
