"""The store on a real file system: completion, leftovers and locking."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.files import explained, write_json
from harness.store import store as store_module
from harness.store.store import DONE, FAILED, Folder, Store
from tests.helpers.commands import ROOT


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def break_off(folder: Folder) -> None:
    with folder.writing() as path:
        (path / "file").write_text("half")
        raise ZeroDivisionError


def fill(folder: Folder, text: str) -> None:
    with folder.writing() as path:
        (path / "file").write_text(text)


def test_a_folder_appears_atomically_when_its_block_ends(store):
    cell = store.cell("a")
    with cell.writing() as path:
        (path / "file").write_text("x")
        assert not cell.path.exists()
        assert not cell.is_done
        assert not (path / DONE).exists(), "DONE comes last"
    assert cell.is_done
    assert names(cell.path) == [DONE, "file"]
    assert names(cell.path.parent) == ["a"]


def test_whoever_may_read_a_folder_may_read_all_of_it(store):
    """Safetensors writes files that only their owner may read, whatever the umask is."""
    with store.cell("a").writing() as folder:
        save_file({"weight": torch.zeros(1)}, folder / "weights.safetensors")
        (folder / "plain.txt").write_text("")
    modes = {file.stat().st_mode for file in store.cell("a").path.iterdir()}
    assert len(modes) == 1, "as the umask has it for new files"


def test_an_exception_leaves_no_trace_and_keeps_the_old_content(store):
    cell = store.cell("a")
    fill(cell, "first")
    with pytest.raises(ZeroDivisionError):
        break_off(cell)
    assert (cell.path / "file").read_text() == "first"
    assert cell.is_done
    assert names(cell.path.parent) == ["a"]


def test_a_second_writing_replaces_the_first_entirely(store):
    cell = store.cell("a")
    with cell.failing("it rained") as path:
        (path / "log.txt").write_text("rain")
    assert (cell.is_done, cell.failure) == (False, "it rained")
    assert names(cell.path) == [FAILED, "log.txt"]
    fill(cell, "x")
    assert (cell.is_done, cell.failure) == (True, None)
    assert names(cell.path) == [DONE, "file"]


def test_leftovers_of_a_killed_writer_are_no_result_and_are_removed_by_the_next_writer(store):
    cell = store.cell("a")
    writer = (
        "import os, signal, sys; from pathlib import Path; from harness.store.store import Store\n"
        "with Store(Path(sys.argv[1])).cell('a').writing() as path:\n"
        "    (path / 'stale').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", writer, str(store.root)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = names(cell.path.parent)
    assert left.startswith(".a.")
    assert not cell.is_done
    fill(cell, "x")
    assert names(cell.path.parent) == ["a"]
    assert names(cell.path) == [DONE, "file"]


WRITERS = """
import multiprocessing, sys
from pathlib import Path
from harness.store.store import Store

def write(root, barrier, problems):
    for number in range(60):
        barrier.wait()
        try:
            with Store(Path(root)).cell(str(number)).writing() as folder:
                for file in "abcdef":
                    (folder / file).write_text(file * 1000)
        except BaseException as error:
            problems.put(repr(error))
    problems.put(None)

if __name__ == "__main__":
    barrier, problems = multiprocessing.Barrier(2), multiprocessing.Queue()
    writers = [multiprocessing.Process(target=write, args=(sys.argv[1], barrier, problems)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reports = []
    while reports.count(None) < 2:
        reports.append(problems.get())
    print([problem for problem in reports if problem])
"""


def test_two_processes_that_write_the_same_folder_leave_one_complete_result(store, tmp_path):
    """This happens if a node is wrongly considered dead and its job is started on another one."""
    script = tmp_path / "writers.py"
    script.write_text(WRITERS)
    done = subprocess.run(
        [sys.executable, script, store.root],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr
    for number in range(60):
        cell = store.cell(str(number))
        assert names(cell.path) == [DONE, *"abcdef"]
    assert names(store.root / "cells") == sorted(str(number) for number in range(60))


def test_a_writer_that_starts_while_another_finishes_keeps_its_files_until_it_ends(store, monkeypatch):
    """That is when the other one removes what killed writers have left."""
    cell, late, original = store.cell("a"), ExitStack(), store_module._flush
    killed = cell.path.with_name(".a.elsewhere-6.partial")
    killed.mkdir(parents=True)

    def flush(path):
        original(path)
        if path == cell.path.parent:
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(store_module, "this_process", lambda: "elsewhere-7")
                (late.enter_context(cell.writing()) / "file").write_text("late")

    monkeypatch.setattr(store_module, "_flush", flush)
    fill(cell, "first")
    monkeypatch.undo()
    assert names(cell.path.parent) == [".a.elsewhere-7.partial", "a"]
    late.close()
    assert names(cell.path.parent) == ["a"]
    assert (cell.path / "file").read_text() == "first"


def test_a_failure_never_replaces_a_result(store):
    cell = store.cell("a")
    fill(cell, "x")
    with cell.failing("too late"):
        pass
    assert (cell.is_done, cell.failure) == (True, None)
    assert (cell.path / "file").read_text() == "x"


def test_discarding_a_folder_removes_done_first(store, monkeypatch):
    cell = store.cell("a")
    fill(cell, "x")

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.store.store.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.discard("a")
    assert names(cell.path) == ["file"]
    assert not cell.is_done
    monkeypatch.undo()
    store.discard("a")
    store.discard("a")
    assert not cell.path.exists()


def test_only_one_process_can_write_and_the_error_names_it(store):
    holder = (
        "import sys, time; from pathlib import Path; from harness.store.store import Store\n"
        "with Store(Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder, store.root], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(
            UserError, match=rf"another run is writing to this store \(pid {process.pid} on "
        ) as refused:
            store.locked().__enter__()
        assert "--store" in str(refused.value)
        process.kill()
    for _ in range(50):  # the kernel releases a dead process's lock immediately; allow five seconds
        try:
            with store.locked():
                return
        except UserError:
            time.sleep(0.1)
    raise AssertionError("the lock of a killed process is still held")


def test_a_file_system_without_locks_is_reported_in_one_line(store, monkeypatch):
    import fcntl

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"No locks available → .* --store \S+$"):
        store.locked().__enter__()


def test_a_store_is_unlocked_after_a_run_even_after_an_exception(store):
    with pytest.raises(ZeroDivisionError), store.locked():
        raise ZeroDivisionError
    with store.locked():
        pass


def test_a_read_only_store_is_refused_before_anything_is_written(store):
    store.root.mkdir(parents=True)
    store.root.chmod(0o555)
    with pytest.raises(UserError, match=r"Permission denied → .* --store \S+$"):
        store.locked().__enter__()
    assert names(store.root) == []


@pytest.mark.parametrize("below", ["", "deeper/store"])
def test_a_store_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write: .* → .* --store \S+$"):
        Store(tmp_path / "file" / below).locked().__enter__()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs permission to mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_reported_in_one_line_and_finished_cells_are_kept(tiny_disk):
    store = Store(tiny_disk)
    fill(store.cell("a"), "x")
    with pytest.raises(
        UserError, match=r"No space left on device → free some space .* finished cells are kept"
    ) as refused:
        fill(store.cell("b"), "x" * 200_000)
    assert "\n" not in str(refused.value)
    assert names(tiny_disk / "cells") == ["a"]
    assert store.cell("a").is_done


def test_a_disk_that_fills_up_during_a_flush_is_reported_in_one_line(store, monkeypatch):
    fill(store.cell("a"), "x")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("harness.store.store.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        fill(store.cell("b"), "x")
    assert names(store.root / "cells") == ["a"]


def test_a_full_disk_under_safetensors_is_reported_in_one_line(tiny_disk):
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(UserError, match="No space left on device"),
        Store(tiny_disk).artifact("m", "k").writing() as path,
    ):
        save_file({"weight": torch.zeros(100_000)}, path / "model.safetensors")


def test_errors_on_other_paths_are_not_blamed_on_the_store(store, tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/somewhere/records.json")
    with pytest.raises(PermissionError), explained(store.root):
        raise error


def test_a_json_file_that_cannot_be_written_leaves_the_old_one_and_no_trace(tmp_path):
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert names(tmp_path) == ["file.json"]
    assert (tmp_path / "file.json").read_text() == '{\n "a": 1\n}\n'


def test_json_is_written_without_escaping_letters(tmp_path):
    write_json(tmp_path / "deep" / "file.json", {"title": "Zürich"})
    assert names(tmp_path / "deep") == ["file.json"]
    assert "Zürich" in (tmp_path / "deep" / "file.json").read_text()


def test_leftovers_of_killed_writers_of_a_finished_folder_are_removed(tmp_path):
    store = Store(tmp_path)
    with store.artifact("statistics", "abc").writing() as folder:
        (folder / "values").write_text("1")
    left = tmp_path / "artifacts" / "statistics" / ".abc.elsewhere-7.partial"
    other = tmp_path / "artifacts" / "statistics" / ".abcd.elsewhere-7.partial"
    left.mkdir()
    other.mkdir()
    with store.locked():
        assert not left.exists()
        assert other.exists()


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("cells/.a.checkpoint", "rename"),
        ("cells/.a.checkpoint", "unlink"),
        ("cells/.a.checkpoint.dropped", "unlink"),
        ("cells/.a.elsewhere-7.partial", "unlink"),
    ],
)
def test_leftovers_that_another_process_is_removing_are_removed(store, monkeypatch, what, step):
    fill(store.cell("a"), "x")
    left = store.root / what
    left.mkdir()
    (left / "weights").write_text("1")
    (left / "state").write_text("1")
    ours = getattr(os, step)

    def late(*where, **options):
        monkeypatch.undo()
        ours(*where, **options)
        ours(*where, **options)

    monkeypatch.setattr(os, step, late)
    store._sweep()
    store._sweep()  # what the other process has renamed, it removes
    assert names(left.parent) == ["a"]
