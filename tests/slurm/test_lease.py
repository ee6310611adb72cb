"""One driver per store on any machine: the file that it renews."""

import json
import os
import socket
import time

import pytest

from harness.errors import UserError
from slurm.driver import STALE_S, Lease


def leased(root, host, pid=1, age_s=0.0):
    """A driver on another machine that renewed its file so long ago."""
    file = root / "launches" / "driver.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"host": host, "pid": pid}))
    then = time.time() - age_s
    os.utime(file, (then, then))
    return file


def test_a_driver_on_another_machine_that_lives_is_not_joined_by_a_second(tmp_path):
    file = leased(tmp_path, "login2", pid=77)
    with pytest.raises(UserError, match="process 77 on login2 drives"), Lease(tmp_path):
        pytest.fail("two drivers")
    assert json.loads(file.read_text())["host"] == "login2"


def test_one_that_has_not_been_seen_for_long_is_followed(tmp_path):
    file = leased(tmp_path, "login2", age_s=STALE_S + 1)
    with Lease(tmp_path) as lease:
        lease.check()
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_one_that_leaves_while_it_is_looked_at_is_followed(tmp_path, monkeypatch):
    file = leased(tmp_path, "login2")
    holder = Lease._holder

    def leaves(self):
        found = holder(self)
        file.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Lease, "_holder", leaves)
    with Lease(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_one_of_this_machine_is_dead_for_the_store_is_locked(tmp_path):
    leased(tmp_path, socket.gethostname(), pid=1)
    with Lease(tmp_path) as lease:
        lease.check()


def test_a_driver_that_lost_its_lease_stops_and_leaves_it_to_the_other(tmp_path):
    with Lease(tmp_path) as lease:
        file = leased(tmp_path, "login2")
        with pytest.raises(UserError, match="login2 has taken over"):
            lease.check()
    assert file.exists()


def test_a_driver_renews_its_lease_while_it_does_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr("slurm.driver.RENEWED_S", 0.05)
    with Lease(tmp_path):
        file = leased(tmp_path, socket.gethostname(), os.getpid(), age_s=50)
        time.sleep(0.5)
        assert time.time() - file.stat().st_mtime < 40
    assert not file.exists()
