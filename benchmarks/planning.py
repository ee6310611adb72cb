"""CPU time of `harness plan` and `harness status` on a large sweep.

    python -m benchmarks.planning [--cells 10000] [--folder FOLDER]

The suite sweeps the learning rate of FT-L on two tiny models and two synthetic datasets. `plan` runs on an empty store, both
commands then on one in which every cell is finished. Printed are user and system seconds, the least of a few runs.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from harness.plan.plan import Plan
from harness.store.store import DONE, Store
from harness.suite import load_suite

MODELS, DATASETS = ("tiny/llama", "tiny/gptj"), ("zsre", "counterfact")
RUNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the CPU seconds of each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="a multiple of four; default: 10000")
    parser.add_argument("--folder", type=Path, help="for suite and store; default: a new one in TMPDIR")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="planning-"))
    suite, store = write_suite(folder / "suite.yaml", options.cells), folder / "store"
    print(f"plan, nothing finished: {least_cpu_s('plan', suite, store):.1f} s")
    finish(suite, store)
    for verb in ("plan", "status"):
        print(f"{verb}, all finished: {least_cpu_s(verb, suite, store):.1f} s")
    return 0


def write_suite(path: Path, cells: int) -> Path:
    """A suite with this many cells."""
    each = cells // (len(MODELS) * len(DATASETS))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "name": "large",
        "models": list(MODELS),
        "methods": ["ft-l"],
        "datasets": [{"name": name, "edits": 50} for name in DATASETS],
        "sweep": {"methods.ft-l.hparams.lr": [round(1e-4 * (1 + number / each), 9) for number in range(each)]},
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def finish(suite: Path, store: Path) -> None:
    """Mark every cell of the suite as finished."""
    for cell in Plan(load_suite(suite, scale="mini"), Store(store)).runnable:
        folder = store / "cells" / cell.folder
        folder.mkdir(parents=True)
        (folder / DONE).touch()


def least_cpu_s(verb: str, suite: Path, store: Path) -> float:
    """User and system seconds of a command."""
    command = [sys.executable, "-m", "harness", verb, str(suite), "--scale", "mini", "--store", str(store)]
    taken = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=dict(os.environ), stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


if __name__ == "__main__":
    sys.exit(main())
