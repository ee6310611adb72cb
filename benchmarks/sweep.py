"""What the harness adds to the work of a sweep: many cells that only sleep, submitted, run and collected.

    python -m benchmarks.sweep --launch mysite [--cells 1000] [--seconds 0] [--folder FOLDER] [--out FILE]
    python -m benchmarks.sweep --launch ./mine.yaml --cells 40 --seconds 10

With cells of no length it shows what a cell costs the driver: its CPU time with that of every squeue and sbatch, and its peak
memory. With cells of some seconds it shows what is added to their work in a job: from submitit's first line in its log to its
last, divided by the sleep between, so that the start is shared by as many cells as the profile packs together. The model has
small random weights. The store stays in FOLDER, with everything in it.
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

from harness.files import write_json

KILOBYTE = 1024
STAMP = re.compile(r"^submitit \w+ \((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3}\)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a sweep.

    Attributes:
        cells, jobs: how many cells were finished, in how many jobs.
        wall_s: from the command to its last table.
        driver_cpu_s: of the driver and all it has called, per cell.
        driver_peak_bytes: of the largest process among them.
        work_s: sleep in all cells.
        job_s: sum over jobs, from the first line of their logs to the last.
    """

    cells: int
    jobs: int
    wall_s: float
    driver_cpu_s: float
    driver_peak_bytes: int
    work_s: float
    job_s: float

    @property
    def overhead(self) -> float:
        """Time of jobs beside the work in them, relative to it."""
        return self.job_s / self.work_s - 1 if self.work_s else float("nan")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, print and write its figures.

    Returns:
        0, or 1 if a cell has not been finished.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", required=True, help="launch profile, or a file of one")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.0, help="length of each cell")
    parser.add_argument(
        "--folder", type=Path, help="on a file system that all nodes see; default: a new one under TMPDIR"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sweep-"))
    found = measure(folder.absolute(), options.launch, options.cells, options.seconds)
    print(f"{found.cells} of {options.cells} cells of {options.seconds:g} s in {found.jobs} jobs, {found.wall_s:.0f} s")
    print(
        f"driver: {1000 * found.driver_cpu_s / options.cells:.0f} ms CPU per cell, "
        f"{found.driver_peak_bytes / 2**20:.0f} MiB at most"
    )
    if found.work_s:
        print(f"jobs: {found.job_s:.0f} s for {found.work_s:.0f} s of work, overhead {found.overhead:.1%}")
    if options.out:
        write_json(options.out, {"benchmark": "sweep", **asdict(found), "overhead": found.overhead})
    return int(found.cells < options.cells)


def measure(folder: Path, launch: str, cells: int, seconds: float) -> Figures:
    """Run so many cells in a store below a folder."""
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
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    command = [sys.executable, "-m", "harness", "run", str(folder / "suite.yaml"), "--scale", "mini"]
    command += ["--store", str(folder / "store"), "--launch", launch, "--no-report"]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        env={**os.environ, "HARNESS_METHODS": "benchmarks.sleeping", "PYTHONPATH": path},
        check=False,
    )
    wall_s, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    done = list((folder / "store" / "cells").glob("*/DONE"))
    spans = _spans(folder / "store")
    return Figures(
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
    told = [STAMP.findall(log.read_text()) for log in (store / "launches").glob("*/submitit/*_log.*")]
    stamps = [[datetime.fromisoformat(stamp) for stamp in of_job] for of_job in told if len(of_job) > 1]
    return [(of_job[-1] - of_job[0]).total_seconds() for of_job in stamps]


if __name__ == "__main__":
    sys.exit(main())
