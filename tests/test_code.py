"""The hash of code from outside this project: what it covers, and what it does not."""

import importlib
import sys

import pytest

from harness.code import source_hash


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """Write modules into a folder on `sys.path`, and hash one of them as a fresh process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(texts, module="coach_method"):
        for name, text in texts.items():
            file = tmp_path / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        for name in [name for name in sys.modules if name.startswith("coach_")]:
            del sys.modules[name]
        source_hash.cache_clear()
        importlib.invalidate_caches()
        return source_hash(module)

    yield made
    source_hash.cache_clear()


IMPORTS = {
    "a module next to it": ("import coach_helper", "coach_helper"),
    "a name from a module next to it": ("from coach_helper import lr", "coach_helper"),
    "an import inside a function": ("def edit():\n    import coach_helper", "coach_helper"),
    "an import in an import": ("import coach_middle", "coach_helper"),
    "a package next to it": ("from coach_package import part", "coach_package/part"),
}


@pytest.mark.parametrize("what", IMPORTS)
def test_code_changes_with_what_it_imports_from_next_to_it(what, hash_of):
    text, imported = IMPORTS[what]
    texts = {
        "coach_method": text,
        "coach_middle": "import coach_helper",
        "coach_package/__init__": "",
        imported: "lr = 1",
    }
    before = hash_of(texts)
    assert hash_of(texts) == before
    assert hash_of({imported: "lr = 2"}) != before


@pytest.mark.parametrize(
    "text", ["from . import sibling", "from .sibling import lr", "from coach_package.sibling import lr"]
)
def test_a_module_of_a_package_changes_with_its_siblings_and_its_package(text, hash_of):
    package = {"coach_package/__init__": "", "coach_package/method": text, "coach_package/sibling": "lr = 1"}
    before = hash_of(package, "coach_package.method")
    changed = hash_of({"coach_package/sibling": "lr = 2"}, "coach_package.method")
    assert changed != before
    assert hash_of({"coach_package/__init__": "lr = 3"}, "coach_package.method") not in (before, changed)


def test_code_does_not_change_with_files_that_it_does_not_import(hash_of):
    before = hash_of({"coach_method": "import json, numpy", "coach_other": "lr = 1"})
    assert before
    assert hash_of({"coach_other": "lr = 2"}) == before
    assert hash_of({"coach_method": "import json, numpy  # again"}) != before


def test_nothing_is_imported_to_hash_it(hash_of):
    assert hash_of({"coach_method": "raise SystemExit('imported')"})
    assert "coach_method" not in sys.modules


def test_code_of_this_project_has_versions_instead():
    assert source_hash("methods.ft_l.editor") == source_hash("harness.evaluation.protocols") == ""
