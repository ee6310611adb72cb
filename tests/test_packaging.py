"""The wheel contains every file that the packages need, and works in an empty folder."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT, environment

PACKAGES = ("harness", "methods", "reports", "slurm", "suites")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder with the installed wheel, built from a copy of this tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    def files(root):
        found = (path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in found if path.suffix != ".pyc"}

    assert files(installed) == files(ROOT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], ["harness 0."]),
        (["list", "suites"], ["main_table", "site-packages"]),
        (["list", "profiles"], ["local", "a100"]),
        (["plan", "main_table", "--scale", "mini"], ["54 cells, 54 can run here"]),
        (["plan", "sequential", "--scale", "mini"], ["can run here"]),
    ],
)
def test_the_command_works_in_an_empty_folder(installed, arguments, words, tmp_path):
    env = environment() | {"PYTHONPATH": str(installed), "PATH": os.defpath}
    code = (
        "import harness, sys; from harness.cli import main; print(harness.__file__, file=sys.stderr); sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{installed / 'harness' / '__init__.py'}\n"
    assert all(word in done.stdout for word in words), done.stdout
    assert list(tmp_path.iterdir()) == []
