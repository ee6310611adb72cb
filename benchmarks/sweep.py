"""Overhead of the harness in a sweep: submit, run and collect many cells that only sleep.

    python -m benchmarks.sweep --launch mysite [--cells 1000] [--seconds 0] [--folder FOLDER] [--out FILE]
    python -m benchmarks.sweep --launch ./mine.yaml --cells 40 --seconds 10

Cells of zero seconds show the cost per cell in the driver: CPU time, including every squeue and sbatch, and peak memory.
Longer cells show the overhead of a job: the time between the first and the last line that submitit writes to its log, compared
with the time slept, so the start-up cost is shared by as many cells as the profile packs into a job. The model is small and
has random weights. The store is kept in FOLDER.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import yaml

from harness.commands import PLUGINS
from harness.files import write_json

SLEEPING = Path(__file__).with_name("sweep_method.py")
KILOBYTE = 1024
STAMP = re.compile(r"^submitit \w+ \((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3}\)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Overhead:
    """Cost of a sweep.

    Attributes:
        cells, jobs: numbers of finished cells and of the jobs that ran them.
        wall_s: wall time of the command.
        driver_cpu_s: CPU time of the driver and all its child processes.
        driver_peak_bytes: peak memory of the largest of these processes.
        work_s: total time slept in all cells.
        job_s: time from the first to the last log line, summed over all jobs.
    """

    cells: int
    jobs: int
    wall_s: float
    driver_cpu_s: float
    driver_peak_bytes: int
    work_s: float
    job_s: float

    @property
    def share(self) -> float:
        """Overhead of the jobs relative to the work in them."""
        return self.job_s / self.work_s - 1 if self.work_s else float("nan")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, print and write its cost.

    Returns:
        0, or 1 if some cells did not finish.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", required=True, help="name or file of a launch profile")
    parser.add_argument("--cells", type=int, default=1000, help="default: 1000")
    parser.add_argument("--seconds", type=float, default=0.0, help="duration of each cell; default: 0")
    parser.add_argument("--folder", type=Path, help="on a file system that all nodes see; default: a new one in TMPDIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sweep-"))
    found = measure(folder.absolute(), options.launch, options.cells, options.seconds)
    print(f"{found.cells} of {options.cells} cells of {options.seconds:g} s in {found.jobs} jobs, {found.wall_s:.0f} s")
    print(
        f"driver: {1000 * found.driver_cpu_s / options.cells:.0f} ms CPU per cell, "
        f"{found.driver_peak_bytes / 2**20:.0f} MiB at most"
    )
    if found.work_s:
        print(f"jobs: {found.job_s:.0f} s for {found.work_s:.0f} s of work, overhead {found.share:.1%}")
    if options.out:
        write_json(options.out, {"benchmark": "sweep", **asdict(found), "overhead": found.share})
    return int(found.cells < options.cells)


def measure(folder: Path, launch: str, cells: int, seconds: float) -> Overhead:
    """Run the cells with a store in `folder` and measure the overhead."""
    folder.mkdir(parents=True, exist_ok=True)
    suite = {
        "name": "sweep",
        "models": [{"name": "tiny/llama", "weights": "random"}],
        "methods": [
            {"name": "sleeping", "label": f"s{number:05d}", "number": number, "seconds": seconds}
            for number in range(cells)
        ],
        "datasets": [{"name": "counterfact", "edits": 2}],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    command = [sys.executable, "-m", "harness", "run", str(folder / "suite.yaml"), "--scale", "mini"]
    command += ["--store", str(folder / "store"), "--launch", launch, "--no-report"]
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, PLUGINS: str(SLEEPING)}, check=False)
    wall_s, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    done = list((folder / "store" / "cells").glob("*/DONE"))
    spans = _spans(folder / "store")
    return Overhead(
        cells=len(done),
        jobs=len(spans),
        wall_s=wall_s,
        driver_cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        driver_peak_bytes=after.ru_maxrss * KILOBYTE,
        work_s=seconds * len(done),
        job_s=sum(spans),
    )


def _spans(store: Path) -> list[float]:
    """Seconds between the first and the last line that submitit wrote in each job."""
    told = [STAMP.findall(log.read_text(encoding="utf-8")) for log in (store / "launches").glob("*/submitit/*_log.*")]
    stamps = [[datetime.fromisoformat(stamp) for stamp in of_job] for of_job in told if len(of_job) > 1]
    return [(of_job[-1] - of_job[0]).total_seconds() for of_job in stamps]


if __name__ == "__main__":
    sys.exit(main())
