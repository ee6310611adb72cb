"""The script that runs the benchmarks on a GPU, with a stand-in for Python that writes down its arguments."""

import importlib
import json
import os
import shlex
import subprocess

import pytest

from benchmarks import collected
from tests.helpers.commands import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
MEASURED = {
    "ensemble": "ensemble",
    "ensemble_whitened": "ensemble",
    "passes": "speculative",
    "edit_stage": "edit_stage",
    "editing": "editing",
    "evaluation": "evaluation",
    "real_pair": "speculative",
}
"""Names of the results, and the module of each."""
PYTHON = """\
#!/bin/sh
[ "$1" = -c ] && exit "$NO_GPU"
echo "$@" >> "$CALLS"
[ "$2" != "benchmarks.$FAILS" ] || { echo reason; exit "$STATUS"; }
"""


@pytest.fixture
def gpu_script(tmp_path):
    """Runs the script; returns what it says and the command lines of the benchmarks."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    calls = tmp_path / "calls"

    def run(*arguments, has_gpu=True, fails="", status=1):
        variables = {
            "PYTHON": str(tmp_path / "python"),
            "CALLS": str(calls),
            "FAILS": fails,
            "STATUS": str(status),
            "NO_GPU": str(1 - has_gpu),
        }
        done = subprocess.run(
            [SCRIPT, *arguments], env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return done, [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["--quick"],
        ["folder", "--quik"],
        ["--quick", "folder"],
        ["folder", "--quick", "more"],
        ["folder", "--device"],
    ],
)
def test_other_arguments_are_refused_with_the_usage(arguments, gpu_script):
    done, calls = gpu_script(*arguments)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert done.stderr == "usage: benchmarks/gpu.sh FOLDER [--device DEVICE] [--quick]\n"


def test_without_a_gpu_it_says_so_and_measures_nothing(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", has_gpu=False)
    assert (done.returncode, calls) == (0, [])
    assert done.stdout.startswith("skipped: torch sees no GPU here")


def test_every_benchmark_gets_options_that_it_knows_and_nine_minutes_are_enough_for_all(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    *calls, collect = calls
    assert [call[1] for call in calls] == [f"benchmarks.{module}" for module in MEASURED.values()]
    for name, call in zip(MEASURED, calls, strict=True):
        options = importlib.import_module(call[1])._options(call[2:])
        assert options.device == "cuda"
        assert options.out == tmp_path / "out" / f"{name}.json"
        assert not options.quick
    assert collect == ["-m", "benchmarks.collected", str(tmp_path / "out"), *MEASURED]
    limits = [
        int(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("── ") and "at most" in line
    ]
    assert len(limits) == len(MEASURED)
    assert sum(limits) <= 9 * 60


@pytest.mark.parametrize("device", [[], ["--device", "cpu"]])
def test_a_quick_run_needs_no_gpu(device, gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", *device, "--quick", has_gpu=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    expected = [["--quick", "--device", "cpu", "--out", f"{out}/{name}.json"] for name in MEASURED]
    assert [call[2:] for call in calls[:-1]] == expected


def test_a_benchmark_that_fails_stops_no_other_and_is_named_at_the_end(gpu_script, tmp_path):
    done, calls = gpu_script(tmp_path / "out", fails="edit_stage")
    assert done.returncode == 1
    assert len(calls) == len(MEASURED) + 1
    assert calls[-1][-5:] == ["--incomplete", "edit_stage:", "exit", "code", "1"]  # the stand-in's `echo` loses quotes
    assert done.stdout.splitlines()[-1] == "── not complete: edit_stage: exit code 1"


def test_what_is_missing_on_this_machine_is_said_in_the_words_of_the_benchmark(gpu_script, tmp_path):
    done, _ = gpu_script(tmp_path / "out", fails="edit_stage", status=2)
    assert done.stdout.splitlines()[-1] == "── not complete: edit_stage: reason"


def test_all_results_are_in_one_file(tmp_path):
    (tmp_path / "first.json").write_text('{"seconds": 1}')
    collected.main([str(tmp_path), "first", "second", "--incomplete", "second: out of time"])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == {"benchmarks": {"first": {"seconds": 1}}, "incomplete": ["second: out of time"]}
