"""`python kill_at_change.py N ARGUMENTS...`: the harness, killed at its N-th change to the files of the store that it is given.

With N = 0 it runs to its end and prints how many changes there were. A change is whatever Python's audit events see:
a file opened for writing, a folder made, a rename, a removal.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def watch(kill_at: int, store: str) -> list[str]:
    """Count changes below the store from now on; kill this process at the given one."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if os.fspath(arguments[0]).startswith(store):
            seen.append(event)
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def run_watched(kill_at: int, arguments: Sequence[str]) -> int:
    """Run the harness here; its exit code."""
    from harness.cli import main

    changes = watch(kill_at, arguments[arguments.index("--store") + 1])
    code = main(arguments)
    print(f"changes {len(changes)}")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(run_watched(int(sys.argv[1]), sys.argv[2:]))
