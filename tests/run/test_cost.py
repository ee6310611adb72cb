"""The clock of a cell."""

import sys

import pytest
import torch

from harness.run import cost
from harness.run.cost import (
    PeakMemory,
    PhaseClock,
    add_phases,
    device_class,
    held_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)

MIB = 2**20


@pytest.fixture
def time(monkeypatch):
    """A clock that only goes when told to."""
    now = {"s": 0.0}
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now["s"])
    return now


def test_phases_add_up_by_name(time):
    clock = PhaseClock("cpu")
    for phase, seconds in (("edit", 2.0), ("evaluate", 5.0), ("edit", 1.5)):
        time["s"] += 100
        with clock.phase(phase):
            time["s"] += seconds
    assert clock.seconds == {"edit": 3.5, "evaluate": 5.0}


def test_phases_do_not_nest_and_the_outer_one_goes_on(time):
    clock = PhaseClock("cpu")
    with clock.phase("edit"):
        with pytest.raises(RuntimeError, match="phase 'attach' inside phase 'edit'"), clock.phase("attach"):
            pass
        with pytest.raises(RuntimeError, match="phase 'edit' inside phase 'edit'"), clock.phase("edit"):
            pass
        time["s"] += 1
    assert clock.seconds == {"edit": 1.0}


def test_a_phase_that_fails_is_counted_and_closed(time):
    clock = PhaseClock("cpu")
    with pytest.raises(ZeroDivisionError), clock.phase("edit"):
        time["s"] += 2 + 1 / 0
    assert clock.seconds == {"edit": 0.0}
    with clock.phase("evaluate"):
        time["s"] += 1
    assert clock.seconds == {"edit": 0.0, "evaluate": 1.0}


def test_the_device_is_waited_for_on_both_sides_of_the_clock(monkeypatch):
    import torch

    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait for {device}"))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: events.append("look at the clock") or 0.0)
    with PhaseClock("cuda:1").phase("edit"):
        events.append("work")
    assert events == ["wait for cuda:1", "look at the clock", "work", "wait for cuda:1", "look at the clock"]


def test_a_sum_of_costs_names_every_phase():
    assert add_phases({"edit": 1.0}, {"edit": 2.0, "setup": 3.0}) == {
        "setup": 3.0,
        "edit": 3.0,
        "attach": 0,
        "evaluate": 0,
    }


def test_times_on_different_numbers_of_threads_are_of_different_classes(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = device_class("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert one.startswith("cpu: ")
    assert one != device_class("cpu")


def test_times_of_processes_that_share_a_device_are_of_a_class_of_their_own():
    alone, shared = device_class("cpu"), device_class("cpu", 2)
    assert shared == f"{alone} (shared by 2 processes)"


def test_the_peak_of_a_process_is_at_least_what_it_holds():
    held = bytearray(50 << 20)
    assert peak_memory_bytes("cpu") > len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget the peak of a process")
def test_the_peak_of_an_earlier_cell_is_forgotten():
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    held = bytearray(100 << 20)
    during = peak_memory_bytes("cpu")
    del held
    assert during > before + (80 << 20)
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") < during - (80 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget the peak of a process")
def test_the_peak_of_a_part_is_its_own_and_the_highest_is_that_of_the_job():
    peak = PeakMemory("cpu")
    peak.begin()
    before = peak.total_bytes
    held = bytearray(100 << 20)
    del held
    peak.begin_part()
    assert peak.part_bytes < before + (20 << 20)
    assert peak.total_bytes > before + (80 << 20)
    peak.begin()
    assert peak.total_bytes < before + (20 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is read from /proc")
def test_memory_that_an_earlier_cell_has_freed_does_not_count():
    """It is in the middle of the heap, below what is still in use, where the C library keeps it."""
    torch.ones(6 * MIB)  # from now on, tensors up to 24 MiB are in the heap
    freed, used = zip(*((torch.ones(2 * MIB), torch.ones(2000)) for _ in range(50)), strict=True)
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    del freed
    assert held_memory_bytes("cpu") < before - 300 * MIB
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") < before - 300 * MIB
    assert len(used) == 50
