"""Run a suite from a program, and load its results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.plan.plan import Plan
from harness.run import start
from harness.run.profiles import load_profile
from harness.store.store import Store
from harness.suite.load import find_suite, load_suite
from reports.results import load_results as load_results

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Results:
    """The cells of a suite in a store.

    Attributes:
        store: results folder.
        suite, scale: what was run.
        cells: folders of the finished cells.
        missing: why there is no result, by cell or combination.
    """

    store: Path
    suite: str
    scale: str
    cells: tuple[Path, ...]
    missing: dict[str, str]

    def scores(self) -> "pd.DataFrame":
        """One row per cell, protocol and axis: `score`, `exact` and `n`, with what identifies the cell."""
        import pandas as pd

        return pd.DataFrame(row for cell in self.cells for row in _scores(cell))


def run(
    suite: str | Path,
    *,
    scale: str | None = None,
    only: str | Sequence[str] = (),
    data: str | Path | None = None,
    edits: int | None = None,
    backend: str | None = None,
    launch: str | None = None,
    store: str | Path = "results",
    is_quiet: bool = True,
) -> Results:
    """Run the missing cells of a suite, as `harness run` does, without writing tables.

    Args:
        suite: name or file.
        scale, only, data, edits, backend, launch: options of `harness run`.
        store: results folder.
        is_quiet: show no progress.

    Raises:
        UserError: for a mistake in the suite, or if nothing can run here. A failed cell is listed in the results instead.
    """
    found = load_suite(
        find_suite(str(suite)),
        scale=scale,
        only=[only] if isinstance(only, str) else only,
        data=None if data is None else str(data),
        edits=edits,
        backend=backend,
    )
    if launch:
        found = replace(found, launch=launch, launch_at="launch", options={**found.options, "launch": launch})
    launcher, home = load_profile(found.launch, found.launch_at), Store(Path(store))
    start.run(Plan.on(launcher, found, home), launcher, Console(stderr=True, quiet=is_quiet))
    return _results(Plan.on(launcher, found, home))


def _results(plan: Plan) -> Results:
    """What the store has of a plan now."""
    folders = [plan.store.cell(cell.folder) for cell in plan.runnable]
    failed = {folder.path.name: folder.failure or "not finished" for folder in folders if not folder.is_done}
    blocked = {" ".join(filter(None, planned.title)): planned.missing[0] for planned in plan.blocked()}
    done = tuple(folder.path for folder in folders if folder.is_done)
    return Results(plan.store.root, plan.suite.name, plan.suite.scale, done, {**failed, **blocked})


def _scores(cell: Path) -> Iterator[dict[str, Any]]:
    from harness.store.store import Folder

    folder = Folder(cell)
    about, metrics = folder.read("cell.json"), folder.read("metrics.json")
    for protocol in about["protocols"]:
        for axis, found in metrics.get(protocol, {}).items():
            yield {
                "cell": cell.name,
                "method": about["method"]["title"],
                "model": about["model"]["title"],
                "dataset": about["data"]["title"],
                "seed": about["seed"],
                "protocol": protocol,
                "axis": axis,
                **found,
            }
