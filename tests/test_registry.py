"""Registration of built-in and plug-in objects, and errors for unknown names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.cli import main
from harness.commands import PLUGINS
from harness.errors import UserError
from harness.registry import Registry

ROOT = Path(__file__).parents[1]
PROTOCOL = """
from harness.evaluation.protocols import TeacherForced
from harness.registry import register_protocol


@register_protocol
class Backwards(TeacherForced):
    name = "{name}"
"""


@pytest.fixture
def things():
    """An empty registry."""
    return Registry("thing", "things", [])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into a folder on `sys.path`."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def plugins(module, monkeypatch):
    """Name plug-ins in the environment and load them; unregister their objects after the test."""
    before = set(registry.protocols)

    def load(*names):
        monkeypatch.setenv(PLUGINS, ":".join(map(str, names)))
        registry.load_plugins()

    yield load
    for name in set(registry.protocols) - before:
        registry.protocols.discard(name)
    registry._import_plugin.cache_clear()


def test_objects_are_found_by_name(things):
    things.add("one", 1, "here")
    things.add("two", 2, "elsewhere")
    assert things.get("one") == 1
    assert "two" in things
    assert "three" not in things
    assert things.all() == {"one": 1, "two": 2}
    assert things.names() == sorted(things) == ["one", "two"]


def test_only_the_same_module_can_register_a_name_again(things):
    things.add("one", 1, "here")
    things.add("one", 11, "here")
    assert things.get("one") == 11
    with pytest.raises(ValueError, match="two things are called 'one': one in here, one in elsewhere"):
        things.add("one", 2, "elsewhere")
    assert things.get("one") == 11


def test_a_discarded_name_is_free_again(things):
    things.add("one", 1, "here")
    things.discard("one")
    things.discard("one")
    assert "one" not in things
    things.add("one", 2, "elsewhere")


def test_an_unknown_name_is_reported_with_the_nearest_or_all_known_ones(things):
    things.add("teacher", 1, "here")
    things.add("pupil", 2, "here")
    with pytest.raises(UserError) as near:
        things.get("techer")
    assert str(near.value) == "unknown thing 'techer' (did you mean 'teacher'?) → python -m harness list things"
    with pytest.raises(UserError, match="unknown thing 'xyz'; known: pupil, teacher →"):
        things.get("xyz")
    assert str(things.unknown("auo", "file.yaml:3", others=("auto",))).startswith(
        "file.yaml:3: unknown thing 'auo' (did you mean 'auto'?)"
    )


def test_builtin_modules_and_submodules_are_imported_on_first_use(module):
    module("flock/__init__", "")
    module("flock/sheep", "from keeper import things; things.add('sheep', 1, __name__)")
    module("goat", "from keeper import things; things.add('goat', 2, __name__)")
    keeper = module("keeper", "from harness.registry import Registry; things = Registry('a', 'b', ['goat', 'flock'])")
    assert keeper.is_file()
    from keeper import things

    assert "flock" not in sys.modules
    assert list(things) == ["goat", "sheep"]


def test_the_order_does_not_depend_on_the_order_of_imports(module):
    module("first", "from shelf import things; things.add('first', 1, __name__)")
    module("second", "from shelf import things; things.add('second', 2, __name__)")
    module("shelf", "from harness.registry import Registry; things = Registry('a', 'b', ['first', 'second'])")
    import second
    from shelf import things

    things.add("own", 3, "plugin")
    assert second
    assert list(things) == ["first", "second", "own"]


def test_a_broken_module_is_reported_at_every_use(module):
    module("broken", "1 / 0")
    things = Registry("thing", "things", ["broken"])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            things.get("one")


def test_decorators_register_and_return_the_decorated_object(plugins):
    @registry.register_table("a-test-table")
    def build(frame):
        return frame

    @registry.register_protocol
    class Sideways(type(registry.protocols.get("teacher_forced"))):
        name = "sideways"

    try:
        assert registry.tables._items["a-test-table"] is build
        assert registry.protocols.get("sideways").__class__ is Sideways
    finally:
        registry.tables.discard("a-test-table")


def test_a_plug_in_can_be_a_module(module, plugins):
    module("my_protocols", PROTOCOL.format(name="backwards"))
    plugins("my_protocols")
    assert registry.protocols.get("backwards").name == "backwards"


def test_a_plug_in_can_be_a_file_whose_module_can_be_imported(module, plugins, tmp_path, monkeypatch):
    module("files/mine", PROTOCOL.format(name="backwards"))
    monkeypatch.chdir(tmp_path)
    plugins("files/mine.py")
    protocol = registry.protocols.get("backwards")
    assert sys.modules["mine"].Backwards is type(protocol)
    assert registry.source_file(type(protocol)) == tmp_path / "files" / "mine.py"


def test_a_plug_in_that_is_named_twice_is_loaded_once(module, plugins, tmp_path):
    file = module("mine", PROTOCOL.format(name="backwards") + "\nprint('loaded')")
    plugins("mine", file, file)
    assert registry.protocols.get("backwards") is registry.protocols.get("backwards")


def test_plug_in_files_replace_neither_each_other_nor_an_installed_module(module, plugins, tmp_path):
    import json

    files = [
        module("a/extra", PROTOCOL.format(name="from-a")),
        module("b/extra", PROTOCOL.format(name="from-b")),
        module("c/json", PROTOCOL.format(name="from-json")),
    ]
    plugins(*files)
    assert {"from-a", "from-b", "from-json"} <= set(registry.protocols)
    assert sys.modules["json"] is json


def test_a_broken_file_leaves_no_partial_module(module, plugins):
    file = module("files/half", "import json\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"^HARNESS_PLUGINS: \S+half\.py:2: ZeroDivisionError: division by zero$"):
            plugins(file)
    assert "half" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "HARNESS_PLUGINS: no module 'nowhere' → add its folder to PYTHONPATH"),
        ("nowhere.deeper", "HARNESS_PLUGINS: no module 'nowhere.deeper'"),
        ("/nowhere/mine.py", "HARNESS_PLUGINS: no such file: /nowhere/mine.py"),
    ],
)
def test_a_missing_plug_in_is_reported_in_one_line(plugins, name, message):
    with pytest.raises(UserError) as refused:
        plugins(name)
    assert str(refused.value).startswith(message)


METHOD = """
from harness.api import Hparams, Method
from harness.registry import register

@register("{name}", title="Own", family="{family}", version=1)
class Own(Method):
    {body}
"""
EDIT = "def edit(self, model, requests, artifacts, context): ..."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", "own.py:2: SyntaxError: invalid syntax"),
        ("import no_such_package", "own.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f():\n    1 / 0\n\nf()", "own.py:2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')", "own.py:2: JSONDecodeError: Expecting property name"),
        (METHOD.format(name="own", family="wieghts", body=EDIT), "own.py:5: ValueError: method 'own': unknown family"),
        (METHOD.format(name="own", family="weights", body="pass"), "class Own does not define edit"),
        (METHOD.format(name="rome", family="weights", body=EDIT), "ValueError: two methods are called 'rome'"),
        ("from harness.api import Hparams\nclass H(Hparams):\n    a = 1\n", "own.py:2: PydanticUserError: A non-"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_line(module, plugins, text, message):
    assert "rome" in registry.methods
    with pytest.raises(UserError) as refused:
        plugins(module("files/own", text))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plug_in_module_with_a_missing_import_names_its_line(module, plugins):
    file = module("needy", "\nimport no_such_package")
    with pytest.raises(UserError, match=rf"^HARNESS_PLUGINS: {file}:2: ModuleNotFoundError: No module named"):
        plugins("needy")


def test_a_plug_in_of_the_command_line_is_named_by_its_option(capsys, monkeypatch):
    monkeypatch.setenv(PLUGINS, "")
    for name, message in (("nofile.py", "--plugin: no such file: "), ("tinyllama-1.1b", "plugin: tinyllama-1.1b}")):
        assert main(["list", "suites", "--plugin", name]) == 2
        assert message in capsys.readouterr().err
        monkeypatch.setenv(PLUGINS, "")


def test_an_installed_package_registers_through_an_entry_point(module, tmp_path):
    module("their_protocols", PROTOCOL.format(name="theirs"))
    module("broken", "1 / 0")
    record = tmp_path / "their_package-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(
        "[editing_harness.protocols]\ntheirs = their_protocols\n[another_program.protocols]\nbroken = broken\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from harness import registry; print(list(registry.protocols))"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip().endswith("'theirs']")


@pytest.fixture
def another():
    """A second backend with an implementation of FT-L; available if `another[0]` is true."""
    is_there = [True]

    @registry.register_backend("another")
    class Another:
        def is_available(self):
            return is_there[0]

    @registry.register("ft-l", title="FT-L", family="weights", version=1, backend="another")
    class TheirFtL(registry.find_method("ft-l")):
        pass

    yield is_there
    registry.backends.discard("another")
    del registry._adapters["another"]


def test_another_implementation_has_the_same_name_under_its_backend(another):
    assert registry.find_method("ft-l", "another").__name__ == "TheirFtL"
    assert registry.find_method("ft-l").__name__ != "TheirFtL"
    with pytest.raises(UserError, match="backend 'another' has no method 'rome'; it has: ft-l"):
        registry.find_method("rome", "another")
    with pytest.raises(UserError, match="unknown method 'ftl'"):
        registry.find_method("ftl", "another")


def test_a_suite_wide_backend_is_used_for_the_methods_it_implements(another):
    assert registry.choose_backend("ft-l", "another") == "another"
    assert registry.choose_backend("rome", "another") == "native"
    assert registry.choose_backend("ft-l", "native") == "native"
    with pytest.raises(UserError, match="unknown backend 'anothr' \\(did you mean 'another'"):
        registry.choose_backend("ft-l", "anothr")


def test_auto_takes_only_a_backend_that_is_available(another):
    with pytest.MonkeyPatch.context() as patch:  # ends before the backend is unregistered
        patch.setattr(registry.backends, "_items", {"another": registry.backends.get("another")})
        assert registry.choose_backend("ft-l", "auto") == "another"
        another[0] = False
        assert registry.choose_backend("ft-l", "auto") == "native"


def test_built_in_objects_are_registered():
    assert {"rome", "onceedit", "none"} <= set(registry.methods)
    assert list(registry.protocols)[:2] == ["teacher_forced", "generation"]
    assert {"zsre", "counterfact", "wiki_counterfact", "wiki_recent", "wikibio", "qaedit", "halluedit", "mquake"} < set(
        registry.datasets
    )
    assert list(registry.formats)[:5] == ["counterfact", "counterfact-flat", "knowedit", "mend", "mend-tsv"]
    assert {form for info in registry.datasets.all().values() for form in info.edited_formats} < set(registry.formats)
    assert "main" in registry.tables


@pytest.mark.parametrize(("word", "name"), [("ROME", "rome"), ("Unedited", "none"), ("unedited", "none")])
def test_names_are_suggested_whatever_their_case_and_by_title(word, name):
    with pytest.raises(UserError, match=rf"unknown method '{word}' \(did you mean '{name}'\?\)"):
        registry.find_method(word)
