"""A suite of waiting cells (`pausing`) that is really launched on a cluster, and what a test sees and does meanwhile."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.commands import environment, results
from tests.helpers.small_suites import write_suite
from tests.slurm.cluster.cluster import Cluster

PROFILE = {
    "launcher": "slurm",
    "mem_gb": 2,
    "time_min": 5,
    "array_parallelism": 4,
    "signal_delay_s": 0,
    "poll_s": 1,
    "settle_s": 1,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """That an edit began, or went on after its pause: in which job, in which process."""

    job: str
    pid: int


class Sweep:
    """One suite in one store.

    Args:
        home: where checkpoint and records are.
        folder: empty; gets suite, profile, store, marks and logs.
        cells: how many, numbered from 0.
        suite, profile: keys laid over the suite and over `PROFILE`.
    """

    def __init__(
        self, cluster: Cluster, home: Path, folder: Path, cells: int = 2, suite: Any = None, profile: Any = None
    ) -> None:
        self.cluster, self.store, self.marks = cluster, folder / "store", folder / "marks"
        self.marks.mkdir(parents=True)
        self.cells = cells
        methods = [{"name": "pausing", "label": f"p{number}", "number": number} for number in range(cells)]
        models = [{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}]
        data = {"name": "counterfact", "path": str(home / "records"), "edits": 8, "train": 8, "unrelated": 4}
        write_suite(folder / "suite.yaml", methods=methods, models=models, datasets=[data], **(suite or {}))
        self.folder = folder
        self.profile = folder / "profile.yaml"
        self.write_profile(**(profile or {}))
        self.log = folder / "driver.log"

    def write_profile(self, **keys: Any) -> None:
        """Change the profile."""
        self.profile.write_text(yaml.safe_dump(PROFILE | keys))

    def hold(self, *numbers: int, after: int = 0) -> None:
        """Let these cells wait in their edits from now on, but for the first ones."""
        for number in numbers:
            (self.marks / f"hold-{number}").write_text(str(after))

    def release(self, *numbers: int) -> None:
        """Let them go on; all of them without an argument."""
        for number in numbers or range(self.cells):
            (self.marks / f"hold-{number}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def driven(self, launch: str | None = None) -> Iterator[subprocess.Popen[str]]:
        """`harness run` in a process of its own, killed at the end of the block if it is still there.

        It runs in the sweep's folder, so that cells of all sweeps say the same of where their values come from.
        """
        command = ["run", "suite.yaml", "--store", self.store, "--no-report", "--launch", launch or self.profile]
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                [sys.executable, "-m", "harness", *map(str, command)],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=log,
                text=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def run(self, launch: str | None = None, limit_s: float = 300) -> int:
        """`harness run` to its end; its exit code."""
        with self.driven(launch) as process:
            return self.finish(process, limit_s)

    def finish(self, driver: subprocess.Popen[str], limit_s: float = 300) -> int:
        """Wait for a driver to end; its exit code."""
        self.until(lambda: driver.poll() is not None, limit_s)
        return driver.returncode

    def begun(self, number: int) -> list[Mark]:
        """Each time that a cell's edit began, in order."""
        return self._marks(number, "begun")

    def ended(self, number: int) -> list[Mark]:
        """Each time that it went on after its pause."""
        return self._marks(number, "ended")

    def until_begun(self, *numbers: int, times: int = 1, limit_s: float = 300) -> None:
        """Wait for cells to be in their edits, for the first time or once more."""
        self.until(lambda: all(len(self.begun(number)) >= times for number in numbers), limit_s)

    def until(self, condition: Callable[[], object], limit_s: float = 300) -> None:
        """Wait for something to be so."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < limit_s, self.story()
            time.sleep(0.1)

    def failures(self) -> dict[int, str]:
        """Reasons of the cells that have failed, by number."""
        return {self._number(file.parent): file.read_text().strip() for file in self.store.glob("cells/[!.]*/FAILED")}

    def done(self) -> list[int]:
        """Numbers of the cells that are done."""
        return sorted(self._number(file.parent) for file in self.store.glob("cells/[!.]*/DONE"))

    def results(self) -> dict[str, bytes]:
        """What its cells say, byte for byte, and their curves if they are sequences."""
        curves = {
            f"{file.parent.name}/curve": file.read_bytes() for file in self.store.glob("cells/[!.]*/curve.parquet")
        }
        return results(self.store) | curves

    def provenance(self, number: int) -> dict[str, Any]:
        """Where the result of a cell comes from."""
        file = next(self.store.glob(f"cells/p{number}-*/provenance.json"))
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    def launches(self) -> list[Path]:
        """Its launch folders, in order of their names."""
        return sorted(path for path in (self.store / "launches").glob("*") if path.is_dir())

    def jobs(self) -> dict[str, str]:
        """SLURM's words for the jobs of its launches."""
        return {job: state for launch in self.launches() for job, state in self.cluster.jobs(launch.name).items()}

    def story(self) -> str:
        """All that is known, for a test that fails."""
        parts = [self.log.read_text() if self.log.exists() else "", self.cluster.run("squeue", "--states=all")]
        parts += [f"── {file}\n{file.read_text(errors='replace')[-3000:]}" for file in self.store.rglob("*_log.err")]
        parts += [f"── {file}\n{file.read_text()}" for file in self.store.rglob("jobs.jsonl")]
        return "\n".join(parts)

    def _marks(self, number: int, what: str) -> list[Mark]:
        found = [file.name.split(".") for file in self.marks.glob(f"{number}.{what}.*")]
        return [Mark(job, int(pid)) for _, _, job, pid, _ in sorted(found, key=lambda parts: int(parts[-1]))]

    def _environment(self) -> dict[str, str]:
        here = Path(__file__).parent
        outside = {"HARNESS_PLUGINS": "pausing", "PYTHONPATH": f"{here}:{here.parents[2]}"}
        return environment() | self.cluster.environment | outside | {"PAUSING": str(self.marks)}

    @staticmethod
    def _number(folder: Path) -> int:
        return int(re.match(r"p(\d+)-", folder.name)[1])  # type: ignore[index]


def kill(process: subprocess.Popen[str] | Mark) -> None:
    """End a process as the kernel does when memory is short."""
    os.kill(process.pid, signal.SIGKILL)
