"""The script that runs the benchmarks on a GPU, with a stand-in for Python that writes down its arguments."""

import importlib
import os
import shlex
import subprocess

import pytest

from tests.helpers.commands import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
NAMES = ["ensemble", "edit_stage", "editing", "evaluation"]
PYTHON = """\
#!/bin/sh
[ "$1" = -c ] && exit "$NO_GPU"
echo "$@" >> "$CALLS"
[ "$2" != "benchmarks.$FAILS" ]
"""


@pytest.fixture
def gpu_script(tmp_path):
    """Runs the script; returns what it says and the command lines of the benchmarks."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    calls = tmp_path / "calls"

    def run(*arguments, has_gpu=True, fails=""):
        variables = {
            "PYTHON": str(tmp_path / "python"),
            "CALLS": str(calls),
            "FAILS": fails,
            "NO_GPU": str(1 - has_gpu),
        }
        done = subprocess.run(
            [SCRIPT, *arguments], env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return done, [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


@pytest.mark.parametrize(
    "arguments", [[], [""], ["--quick"], ["folder", "--quik"], ["--quick", "folder"], ["folder", "--quick", "more"]]
)
def test_other_arguments_are_refused_with_the_usage(arguments, gpu_script):
    done, calls = gpu_script(*arguments)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert done.stderr == "usage: benchmarks/gpu.sh FOLDER [--quick]\n"


def test_without_a_gpu_it_says_so_and_measures_nothing(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", has_gpu=False)
    assert (done.returncode, calls) == (0, [])
    assert done.stdout.startswith("skipped: torch sees no GPU here")


def test_every_benchmark_gets_options_that_it_knows(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [call[1] for call in calls] == [f"benchmarks.{name}" for name in NAMES]
    for name, call in zip(NAMES, calls, strict=True):
        options = importlib.import_module(call[1])._options(call[2:])
        assert options.device == "cuda"
        assert options.out == tmp_path / "out" / f"{name}.json"
        assert not options.quick


def test_a_quick_run_needs_no_gpu(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", "--quick", has_gpu=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert [call[2:] for call in calls] == [["--quick", "--device", "cpu", "--out", f"{out}/{n}.json"] for n in NAMES]


def test_a_benchmark_that_fails_stops_no_other_and_is_named_at_the_end(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", fails="edit_stage")
    assert done.returncode == 1
    assert len(calls) == len(NAMES)
    assert done.stdout.splitlines()[-1] == "── not complete: edit_stage (exit code 1)"
