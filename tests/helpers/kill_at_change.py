"""`python kill_at_change.py N STORE ARGUMENTS...`: the harness, killed at its N-th change to the files of a store.

With N = 0 it runs to its end and prints how many changes there were. A change is whatever Python's audit events see:
a file opened for writing, a folder made, a rename, a removal.
"""

import os
import signal
import sys
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


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from harness.cli import main

    changes = watch(int(sys.argv[1]), sys.argv[2])
    code = main(sys.argv[3:])
    print(f"changes {len(changes)}")
    sys.exit(code)
