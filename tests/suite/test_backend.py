"""Choice of the backend: entry, command line, scale and suite, in this order."""

import dataclasses
import subprocess
import sys

import pytest

from harness import registry
from harness.errors import UserError
from harness.plan.plan import Plan
from harness.store.store import Store
from harness.suite import load_suite
from methods.easyedit import checkout
from tests.helpers.fake_checkout import git, pinned, write_checkout
from tests.suite.conftest import BASE, named

ENTRY = BASE.replace("ft-l", "{name: ft-l, backend: native}")


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A checkout of EasyEdit."""
    return pinned(write_checkout(tmp_path / "checkout"), monkeypatch)


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """No checkout anywhere."""
    monkeypatch.delenv("EASYEDIT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def backends(suite):
    return {entry.label: entry.backend for entry in suite.methods}


def test_the_default_is_the_native_backend(write, found):
    assert backends(load_suite(write())) == {"none": "native", "ft-l": "native"}


def test_auto_is_easyedit_if_there_is_an_adapter_and_a_checkout(write, found):
    assert backends(load_suite(write("backend: auto\n"))) == {"none": "native", "ft-l": "easyedit"}


def test_auto_without_a_checkout_is_native(write, nothing):
    assert backends(load_suite(write("backend: auto\n"))) == {"none": "native", "ft-l": "native"}


def test_the_command_line_overrides_suite_and_scale(write, found):
    path = write("backend: auto\n")
    assert backends(load_suite(path, backend="native"))["ft-l"] == "native"
    assert backends(load_suite(path, scale="mini"))["ft-l"] == "native"
    assert backends(load_suite(path, scale="mini", backend="easyedit"))["ft-l"] == "easyedit"


def test_an_entry_overrides_everything(write, found):
    path = write("backend: easyedit\n", base=ENTRY)
    assert backends(load_suite(path, backend="easyedit"))["ft-l"] == "native"


def test_an_entry_without_an_adapter_is_refused_with_its_location(write, found):
    with pytest.raises(UserError, match=r"suite.yaml:3: backend 'easyedit' has no method 'none'; it has: .*ft-l"):
        load_suite(write(base=BASE.replace("none", "{name: none, backend: easyedit}")))


def test_the_easyedit_backend_sets_the_implementation_and_keeps_all_other_values(write, found):
    suite = load_suite(write("backend: easyedit\n"))
    theirs = named(suite.methods[1].hparams)["llama2-7b"]
    ours = named(load_suite(write()).methods[1].hparams)["llama2-7b"].values
    assert theirs.values == {**ours, "implementation": "faithful-easyedit", "without": []}
    assert theirs.sources["implementation"] == "backend easyedit"
    assert theirs.sources["lr"].startswith("OnceEdit")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (", variant: corrected", 'ft-l: EasyEdit does not support implementation: "corrected"'),
        (", loss_stop: 0.5", "ft-l: EasyEdit does not support loss_stop: 0.5 → loss_stop: 0.01"),
        (", without: [padding]", "no workaround 'padding'"),
    ],
)
def test_the_plan_reports_what_easyedit_does_not_support(write, found, options, reason, tmp_path):
    base = BASE.replace("ft-l", f"{{name: ft-l{options}}}").replace("zsre, edits: 100", "zsre, edits: 5")
    made = Plan(load_suite(write("backend: easyedit\n", base=base), scale="mini", backend="easyedit"), Store(tmp_path))
    assert any(line.startswith(reason) for line in made.missing())
    assert all("\n" not in line for line in made.missing())


def test_the_plan_reports_a_missing_checkout(write, nothing, tmp_path):
    made = Plan(load_suite(write(), scale="mini", backend="easyedit", edits=5), Store(tmp_path))
    (line,) = made.missing()
    assert line.startswith("no EasyEdit at")
    assert "python -m harness easyedit fetch" in line
    assert [planned.backend for planned in made.cells] == ["native", "easyedit"] * 2


@pytest.fixture
def cell(write, found, tmp_path):
    """EasyEdit's FT-L on a tiny model."""
    made = Plan(load_suite(write(), scale="mini", backend="easyedit", edits=5), Store(tmp_path / "store"))
    return next(cell for cell in made.runnable if cell.backend == "easyedit")


def test_backend_and_code_are_in_the_identity_of_a_cell(cell, found):
    ours = dataclasses.replace(
        cell, backend="native", hparams={k: v for k, v in cell.hparams.items() if k != "without"}
    )
    assert cell.identity()["method"]["code"] == {"easyedit": checkout.COMMIT}
    assert "code" not in ours.identity()["method"]
    assert cell.cell_id != ours.cell_id
    (found / "easyeditor" / "util.py").write_text("# changed\n")
    checkout._inspect.cache_clear()
    assert dataclasses.replace(cell).cell_id != cell.cell_id


def test_disabled_workarounds_are_in_the_identity_and_active_ones_in_the_provenance(cell, found):
    off = dataclasses.replace(cell, hparams={**cell.hparams, "without": ["right-padding"]})
    assert off.cell_id != cell.cell_id
    origin = off.instance().provenance()["easyedit"]
    assert origin == {
        "folder": str(found),
        "commit": git(found, "rev-parse", "HEAD"),
        "clean": True,
        "workarounds": ["trainable-again", "unscored-padding"],
    }


def test_an_adapter_has_the_name_and_family_of_the_native_method():
    for name, adapter in registry.implementations("easyedit").all().items():
        ours = registry.find_method(name).spec
        assert dataclasses.replace(adapter.spec, version=ours.version) == ours
        assert issubclass(adapter.Hparams, registry.find_method(name).Hparams)


def test_planning_with_easyedit_imports_no_torch(found):
    code = (
        "import sys; from harness.plan.plan import Plan; from harness.store.store import Store; "
        "from harness.suite import load_suite; "
        "made = Plan(load_suite('suites/main_table.yaml', scale='mini', backend='easyedit'), Store('/nowhere')); "
        "made.missing(); sys.exit('torch' in sys.modules)"
    )
    from tests.helpers.commands import ROOT

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
