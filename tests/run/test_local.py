"""The local launcher: the same results and the same lines from one process and from several, whatever happens to them."""

import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run import local, progress
from harness.run.agenda import Agenda
from harness.run.local import LocalLauncher, LocalProfile, Workers, gpus
from harness.run.progress import Display
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.commands import ROOT, environment, results
from tests.helpers.fake_jobs import BrokenNeeds, RecordingWatcher, fake_job
from tests.helpers.small_suites import copy_home, write_suite


@pytest.fixture(scope="module", autouse=True)
def no_lines_between_jobs():
    """On a slow machine too: only jobs that end have a line here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_S", 3600.0)
        yield


def plan_of(home, store):
    return Plan(load_suite(home / "small.yaml"), Store(store))


def launched(plan, **options):
    """What a launch says and does: its summary, and its lines without times."""
    out = io.StringIO()
    with Display(Console(file=out, width=500)) as display:
        summary = LocalLauncher(LocalProfile(launcher="local", **options)).run(plan, display)
    lines = [re.sub(r" \d+\.\d s$", "", line) for line in out.getvalue().splitlines()]
    return summary, lines


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    """What one process makes of the suite."""
    store = tmp_path_factory.mktemp("alone")
    summary, lines = launched(plan_of(home, store))
    assert (len(summary.finished), summary.failed, summary.kept) == (4, (), ())
    return results(store), lines


@pytest.mark.parametrize(
    ("wanted", "threads", "gpus", "processes"),
    [
        (None, 1, [], 1),
        (None, 1, ["0", "1"], 2),
        (3, None, ["0"], 3),
        ("cores", 1, [], 8),
        ("cores", 3, [], 2),
        ("cores", 16, [], 1),
        ("cores", None, [], 1),
        ("cores", 1, ["0", "1"], 2),
    ],
)
def test_processes_follow_from_profile_threads_and_gpus(monkeypatch, wanted, threads, gpus, processes):
    monkeypatch.setattr(local, "cores", lambda: 8)
    launcher = LocalLauncher(LocalProfile(launcher="local", processes=wanted))
    assert launcher.processes(threads, gpus) == processes


@pytest.mark.parametrize(
    ("device", "processes", "shared_by"), [("cpu", 3, 3), ("cuda", 2, 1), ("cuda", 3, 2), ("cuda", 4, 2)]
)
def test_batches_say_how_many_processes_share_a_device(home, tmp_path, monkeypatch, device, processes, shared_by):
    taken = []
    plan = plan_of(home, tmp_path)
    plan.device = device
    monkeypatch.setattr(local, "gpus", lambda: ["0", "1"])
    monkeypatch.setattr(Workers, "run", lambda self, agenda: taken.append(agenda.take()))
    launched(plan, processes=processes)
    assert [batch.shared_by for batch in taken] == [shared_by]


@pytest.mark.parametrize(
    ("wanted", "visible", "device_map", "processes"),
    [
        (None, ["0", "1"], "auto", 1),
        (2, ["0", "1"], {"": 0, "model.layers.1": 1}, 1),
        (None, ["0", "1"], None, 2),
        (2, ["0"], "auto", 2),
    ],
)
def test_a_model_spread_over_gpus_runs_in_one_process_that_sees_all_of_them(
    home, tmp_path, monkeypatch, wanted, visible, device_map, processes
):
    models = [{"name": name, "path": str(home / name)} for name in ("llama", "gptj")]
    models[0]["device_map"] = device_map
    plan = Plan(load_suite(write_suite(home / "spread.yaml", models=models, methods=["none"])), Store(tmp_path), "cuda")
    monkeypatch.setattr(local, "gpus", lambda: visible)
    monkeypatch.setattr(local, "run_batch", lambda batch, watcher: started.append(1))
    monkeypatch.setattr(Workers, "run", lambda self, agenda: started.append(len(self._workers)))
    started = []
    _, lines = launched(plan, processes=wanted)
    assert started == [processes]
    said = "one process that sees all GPUs, because device_map spreads llama over them"
    assert any(said in line for line in lines) == (processes == 1)


def without_numbers(lines):
    return sorted(re.sub(r"\d+/", "", line) for line in lines)


def test_a_line_for_each_job_in_their_order(alone):
    assert alone[1][0].startswith("to do: 2 artifacts and 4 cells, about ")
    assert alone[1][1:] == [
        "✓ 1/2 artifact unedited-outputs tiny/llama counterfact",
        "✓ 2/2 artifact unedited-outputs tiny/gptj counterfact",
        "✓ 1/4 none on tiny/llama, counterfact",
        "✓ 2/4 ft-l on tiny/llama, counterfact",
        "✓ 3/4 none on tiny/gptj, counterfact",
        "✓ 4/4 ft-l on tiny/gptj, counterfact",
    ]


@pytest.mark.slow
def test_two_processes_make_the_same_bits_and_say_the_same(home, alone, tmp_path):
    summary, lines = launched(plan_of(home, tmp_path), processes=2)
    assert results(tmp_path) == alone[0]
    assert without_numbers(lines) == without_numbers(alone[1])
    counted = [line.split()[1] for line in lines[1:]]  # a cell may end before the last artifact does
    assert [one for one in counted if one.endswith("/2")] == ["1/2", "2/2"]
    assert [one for one in counted if one.endswith("/4")] == ["1/4", "2/4", "3/4", "4/4"]
    assert (len(summary.finished), summary.failed, summary.kept) == (4, (), ())
    again, nothing = launched(plan_of(home, tmp_path), processes=2)
    assert (again.finished, len(again.kept), nothing) == ((), 4, [])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_artifact_that_cannot_be_built_fails_its_cells_and_no_other(home, alone, tmp_path, processes):
    spoilt = copy_home(home, tmp_path / "home")
    plan = plan_of(spoilt, tmp_path / "store")
    damaged = spoilt / "llama" / "model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    summary, lines = launched(plan, processes=processes)
    assert len(summary.finished) == 2
    assert {reason.partition(" is damaged")[0] for _, reason in summary.failed} == {str(damaged)}
    assert {folder.partition("-tiny_")[0] for folder, _ in summary.failed} == {"none", "ft-l"}
    failed = [line for line in lines if line.startswith("✗")]
    assert len(failed) == 3
    assert all("damaged" in line for line in failed)

    damaged.write_bytes(whole)
    summary, _ = launched(plan_of(spoilt, tmp_path / "store"))
    assert (len(summary.finished), len(summary.kept), summary.failed) == (2, 2, ())
    for name, content in results(tmp_path / "store").items():
        assert name.endswith("cell.json") or content == alone[0][name], "cell.json names the suite's file"


class Killer(RecordingWatcher):
    """Kills a worker when it begins a job."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def began(self, job):
        super().began(job)
        if job.place == self.place:
            self.place = None
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_running_cell_and_the_rest_is_done(home, alone, tmp_path):
    plan = plan_of(home, tmp_path)
    todo = jobs(plan)
    victim = next(job for job in todo if job.is_cell)
    log = Killer(victim.place)
    with Workers(1, [], log) as workers:
        workers.run(Agenda(todo, tmp_path, "cpu", 1, packing=100))
    failure = plan.store.folder(victim.place).failure
    assert failure == "its process was killed by SIGKILL (often the system itself, when memory runs out)"
    assert [outcome.reason for outcome in log.outcomes if outcome.reason] == [failure]
    assert log.events.count(("ended", victim.place)) == 1
    assert [plan.store.folder(job.place).is_done for job in todo] == [job != victim for job in todo]
    summary, _ = launched(plan_of(home, tmp_path))
    assert (summary.finished, len(summary.kept)) == ((victim.work.folder,), 3)
    assert results(tmp_path) == alone[0]


@pytest.mark.slow
def test_each_process_sees_one_gpu_and_no_process_is_this_one(tmp_path):
    todo = [fake_job(name) for name in "abc"]
    with Workers(2, ["4", "7"], RecordingWatcher()) as workers:
        workers.run(Agenda(todo, tmp_path, "cpu", 1))
    told = [Store(tmp_path).folder(job.place).read("process.json") for job in todo]
    seen = {(each["gpu"], str(each["pid"])) for each in told}
    assert sorted(gpu for gpu, _ in seen) == ["4", "7"], "the process that was ready first has taken the third"
    assert str(os.getpid()) not in {pid for _, pid in seen}


@pytest.mark.slow
def test_a_bug_in_a_worker_ends_the_launch_with_its_traceback_and_leaves_no_process(tmp_path):
    todo = [fake_job("broken", needs=BrokenNeeds()), fake_job("other")]
    with (
        pytest.raises(RuntimeError, match="ZeroDivisionError: a bug in the harness"),
        Workers(2, [], RecordingWatcher()) as workers,
    ):
        workers.run(Agenda(todo, tmp_path, "cpu", 1))
    assert multiprocessing.active_children() == []


class Deadly:
    """In place of a job's needs: whoever is sent it ends at once."""

    def __iter__(self):
        return iter(())

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_before_its_first_job_is_not_begun_for_ever(tmp_path):
    todo = [fake_job(name, needs=Deadly()) for name in "ab"]
    log = RecordingWatcher()
    with Workers(1, [], log) as workers:
        workers.run(Agenda(todo, tmp_path, "cpu", 1, packing=2))
    assert log.events == [("ended", job.place) for job in todo]
    for job in todo:
        assert Store(tmp_path).folder(job.place).failure == "its process ended with exit code 3"


LAUNCH = """
import sys
from pathlib import Path
from rich.console import Console
from harness.plan.plan import Plan
from harness.run.local import LocalLauncher, LocalProfile
from harness.run.progress import Display
from harness.store.store import Store
from harness.suite import load_suite

store = Store(Path(sys.argv[2]))
launcher = LocalLauncher(LocalProfile(launcher="local", processes=2, packing=1))
with store.locked(), Display(Console()) as display:
    launcher.run(Plan(load_suite(sys.argv[1]), store), display)
"""


def children(pid):
    """Processes that a process has started, by what the kernel says."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def until(condition, limit_s=300):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the launcher is killed", "the terminal is interrupted"])
def test_workers_end_with_their_launcher_and_another_one_ends_the_same(how, home, alone, tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-c", LAUNCH, home / "small.yaml", store]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **quiet) as process:
        until(lambda: list(store.glob("artifacts/*/*/DONE")))
        until(lambda: len(children(process.pid)) >= 2)
        workers = children(process.pid)
        if how == "the launcher is killed":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)
    until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), limit_s=60)
    summary, _ = launched(plan_of(home, store))
    assert summary.failed == ()
    assert results(store) == alone[0]


def test_gpus_are_those_that_the_environment_allows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-1f")
    assert gpus() == ["2", "GPU-1f"]
    for hidden in ("", "-1", " "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,0")
    assert gpus() == ["1"], "CUDA itself sees none behind it"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(gpus()) == len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
