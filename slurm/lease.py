"""One driver per store, on whichever machine: a file that it renews, because the store's lock is not seen from other machines."""

import contextlib
import json
import math
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from harness.errors import UserError
from harness.files import explained, write_json

RENEWED_S = 20.0
"""A driver renews its file so often, whatever else it does."""
STALE_S = 90.0
"""One that has not renewed it for so long is taken for dead."""


@dataclass(frozen=True, slots=True)
class Driver:
    """Who drives."""

    host: str
    pid: int


class Seat:
    """The right to submit jobs for a store; `with Seat(root) as seat`, then `seat.check()` now and again.

    It is meant for a process that holds the store's lock: another driver of this machine is dead then. Ages are measured by
    the clock of the file system, which is the same for all machines.
    """

    def __init__(self, root: Path) -> None:
        self._file = root.resolve() / "launches" / "driver.json"
        self._me = Driver(socket.gethostname(), os.getpid())
        self._left = threading.Event()

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            UserError: when a driver on another machine has it and is alive.
        """
        holder = self._holder()
        if holder is not None and holder.host != self._me.host and (age_s := self._age_s()) < STALE_S:
            raise UserError(
                f"{self._file.parent}: process {holder.pid} on {holder.host} drives the launches of this store, "
                f"seen {age_s:.0f} s ago",
                fix=f"follow it with `harness status SUITE`, or end it and try again after {STALE_S:.0f} s",
            )
        write_json(self._file, asdict(self._me))
        threading.Thread(target=self._renew, name="seat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._holder() == self._me:
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that it is still this driver's.

        Raises:
            UserError: when another driver has taken it, because this one slept for too long.
        """
        holder = self._holder()
        if holder != self._me:
            who = f"process {holder.pid} on {holder.host}" if holder else "somebody"
            raise UserError(
                f"{self._file}: {who} has taken over; this driver stops, jobs go on", fix="harness status SUITE"
            )

    def _renew(self) -> None:
        while not self._left.wait(RENEWED_S):
            with contextlib.suppress(OSError):  # a file system that is away for a moment; `check` sees a lasting loss
                if self._holder() == self._me:
                    self._file.touch()

    def _holder(self) -> Driver | None:
        try:
            return Driver(**json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _age_s(self) -> float:
        """Time since it was renewed, between two marks of one clock; infinite if its driver has just left it."""
        probe = self._file.with_name(f".{self._me.host}.{self._me.pid}.{time.monotonic_ns()}")
        with explained(probe):
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        try:
            return now - self._file.stat().st_mtime
        except FileNotFoundError:
            return math.inf
