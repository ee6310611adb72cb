"""`python guard.py FOLDER` ends a cluster with whoever started it: once its standard input is closed, be it because the tests were
killed, it kills every process that knows the cluster, and removes its folder.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


def kill_all(mark: Mapping[str, str]) -> bool:
    """Kill all processes that were started with these variables; whether there was one."""
    found = [pid for pid, told in _processes() if mark.items() <= told.items()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _processes() -> Iterator[tuple[int, dict[str, str]]]:
    """Processes of this machine with their first environments, as far as they may be read."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            yield int(folder.name), dict(entry.split("=", 1) for entry in entries if "=" in entry)


if __name__ == "__main__":
    sys.stdin.read()
    folder = Path(sys.argv[1])
    while kill_all({"SLURM_CONF": str(folder / "slurm.conf")}):
        time.sleep(0.05)
    shutil.rmtree(folder)
