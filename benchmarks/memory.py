"""Peak memory of every method, compared with the estimate that plans and launch profiles rely on.

    python -m benchmarks.memory [--models tiny/llama smollm2-135m gemma-3-270m] [--methods …] [--edits 8]

Every cell and every artifact runs in a process of its own, in the order in which a run would take them. The peak is the
largest resident set of that process, or the largest amount of memory that torch allocated on a GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from benchmarks.command import new_parser, new_table, run, start, write_results
from harness.data.synthetic import upstream_rows
from harness.files import write_json
from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.cost import peak_memory_bytes
from harness.run.jobs import Batch, run_batch
from harness.run.progress import Display
from harness.store.store import Store
from harness.suite import load_suite

MODELS = ("tiny/llama", "smollm2-135m", "gemma-3-270m")
METHODS = (
    "none",
    "ft-l",
    "mend",
    "emsedit",
    "ultraedit",
    "rome",
    "memit",
    "alphaedit",
    "grace",
    "defer",
    "wise",
    "onceedit",
)
SUITE = "memory"
SPANS = (0.75, 1.25)
"""Estimate relative to the peak that counts as right."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory of one job, in bytes.

    Attributes:
        title: of the job.
        estimated: as `plan` says.
        measured: peak of its process, or of its GPU.
    """

    title: str
    estimated: int
    measured: int

    @property
    def ratio(self) -> float:
        """Estimate relative to the measured peak."""
        return self.estimated / self.measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all jobs, print and write the table."""
    parser = new_parser("memory", __doc__, "one small model and two methods")
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), help=f"default: {' '.join(MODELS)}")
    add("--methods", nargs="+", default=list(METHODS), help=f"default: {' '.join(METHODS)}")
    add("--dataset", default="counterfact", help="default: counterfact, synthetic records")
    add("--edits", type=int, default=8, help="default: 8")
    add("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE", help="hyper-parameters")
    add("--folder", type=Path, help="suite and store; what is finished there is not measured again; default: a new one")
    add("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.methods, options.edits = ["tiny/llama"], ["none", "ft-l"], 2
    if options.job:
        print(json.dumps(_peak(_plan(options), options.job)))
        return
    console = start(options)
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="memory-"))
    options.folder.mkdir(parents=True, exist_ok=True)
    write_suite(options)
    table = new_table("Peak memory", ["job"], ["estimate", "peak", "estimate / peak"])
    peaks = []
    for peak in measured(options):
        console.print(f"{peak.title}: {_gigabytes(peak.estimated)}, {_gigabytes(peak.measured)}, {peak.ratio:.2f}")
        peaks.append(peak)
        table.add_row(peak.title, _gigabytes(peak.estimated), _gigabytes(peak.measured), f"{peak.ratio:.2f}")
    console.print(table)
    right = sum(SPANS[0] <= peak.ratio <= SPANS[1] for peak in peaks)
    console.print(f"{right} of {len(peaks)} estimates are within 25 % of the peak")
    results = [{"job": peak.title, "estimated": peak.estimated, "measured": peak.measured} for peak in peaks]
    write_results(options, {"peaks": results})


def write_suite(options: argparse.Namespace) -> None:
    """Write synthetic records and the suite that the options describe into the folder."""
    records = options.folder / "records"
    records.mkdir(exist_ok=True)
    write_json(records / f"{options.dataset}.json", upstream_rows(options.dataset))
    chosen: dict[str, dict[str, object]] = {name: {} for name in options.methods}
    for setting in options.set:
        key, _, value = setting.partition("=")
        method, _, name = key.partition(".")
        chosen.setdefault(method, {})[name] = yaml.safe_load(value)
    suite = {
        "name": SUITE,
        "models": list(options.models),
        "methods": [{"name": name, **more} for name, more in chosen.items()],
        "datasets": [
            {"name": options.dataset, "path": str(records), "edits": options.edits, "train": 200, "unrelated": 20}
        ],
        "device": torch_device(options.device),
        "threads": options.threads or 2,
    }
    (options.folder / f"{SUITE}.yaml").write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")


def torch_device(device: str) -> str:
    """The kind of a device, as suites name it."""
    return device.partition(":")[0]


def measured(options: argparse.Namespace) -> Iterator[Peak]:
    """Run each job that is still to do in a process of its own."""
    for job in jobs(_plan(options)):
        command = [sys.executable, "-m", "benchmarks.memory", "--folder", str(options.folder), "--job", job.place]
        done = subprocess.run([*command, "--device", options.device], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{job.title}: failed\n{done.stderr}", file=sys.stderr)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        if found["failure"]:
            print(f"{job.title}: {found['failure']}", file=sys.stderr)
            continue
        yield Peak(job.title, job.resources.memory_bytes, found["bytes"])


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(load_suite(options.folder / f"{SUITE}.yaml"), Store(options.folder / "store"))


def _peak(plan: Plan, place: str) -> dict[str, object]:
    """Run a job of the plan; return the peak of this process, and the reason if the job failed."""
    job = next(job for job in jobs(plan) if job.place == place)
    batch = Batch("alone", plan.store.root, (job,), plan.device, plan.suite.threads)
    run_batch(batch, Display(Console(quiet=True)))
    return {"bytes": peak_memory_bytes(plan.device), "failure": plan.store.folder(place).failure}


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


if __name__ == "__main__":
    run(main)
