"""`python kill_at_change.py N ARGUMENTS...`: the harness, killed at its N-th change to the files of the store that it is given.

With N = 0 it runs to its end and prints how many changes there were. A change is whatever Python's audit events see:
a file opened for writing, a folder made, a rename, a removal.
"""

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


@dataclass(frozen=True)
class Kill:
    """When a process is killed.

    Attributes:
        at: number of the change; 0 for never.
        below: folder of the store in which changes count; all by default.
        calls: so many function calls after the change.
    """

    at: int
    below: str = ""
    calls: int = 0


def watch(kill: Kill, store: str) -> list[str]:
    """Count changes below the store from now on, and kill this process."""
    folder = str(Path(store, kill.below))
    seen: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if os.fspath(arguments[0]).startswith(folder):
            seen.append(event)
            if len(seen) == kill.at:
                _kill_after(kill.calls)

    sys.addaudithook(hook)
    return seen


def _kill_after(calls: int) -> None:
    """Kill this process when functions, those of torch among them, have been called or have returned so many times."""
    seen = itertools.count()

    def count(*_: object) -> None:
        if next(seen) >= calls:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    count()


def run_watched(kill: Kill, arguments: Sequence[str]) -> int:
    """Run the harness here; its exit code."""
    from harness.cli import main

    changes = watch(kill, arguments[arguments.index("--store") + 1])
    code = main(arguments)
    print(f"changes {len(changes)}")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(run_watched(Kill(int(sys.argv[1])), sys.argv[2:]))
