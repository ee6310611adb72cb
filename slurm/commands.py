"""The verbs about launches: status, cancel, logs."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from harness.errors import UserError
from harness.plan.plan import Plan
from harness.run.work import to_do
from harness.store.store import Store
from slurm.arrays import works
from slurm.launch import Launch, launches
from slurm.profile import SlurmProfile
from slurm.queue import UnreachableError, named
from slurm.state import cancel as scancel
from slurm.status import last_job, status

LAST_WORDS_S = 180
"""Between a job's cancellation and its end; KillWait of most sites is 30 s."""


def shape(plan: Plan, profile: SlurmProfile) -> str:
    """What SLURM would be asked for, as a sentence."""
    needed, notes = works(plan, profile, to_do(plan))
    counts = Counter(work.resource for work in needed.values())
    names = [each.name for each in profile.resources]
    classes = ", ".join(f"{count} in class '{names[number]}'" for number, count in sorted(counts.items()))
    return "; ".join(["tasks on SLURM: " + (classes or "none"), *notes[:1]])


def show(plan: Plan, console: Console, *, as_json: bool, watch_s: float | None, everything: bool) -> int:
    """Print how the cells of a plan are doing, once or again and again until none is to be waited for.

    Returns:
        1 if a cell has failed, else 0.
    """
    seen = status(plan)
    if as_json:
        print(json.dumps(seen.data(), indent=1, ensure_ascii=False))
    elif watch_s is None:
        console.print(seen.table(everything))
    else:
        with Live(seen.table(everything), console=console, auto_refresh=False) as live:
            while seen.counts.keys() & {"running", "pending", "to do"}:
                time.sleep(watch_s)
                seen = status(plan)
                live.update(seen.table(everything), refresh=True)
    return 1 if "failed" in seen.counts else 0


def cancel(store: Store, suite: str, scale: str, console: Console) -> int:
    """End the launches of a suite that are not over. Finished cells stay, unfinished ones are to do.

    Raises:
        UserError: when there is none, when SLURM cannot be told, or when a job does not end.
    """
    chosen = [each for each in launches(store) if (each.facts["suite"], each.facts["scale"]) == (suite, scale)]
    if not chosen:
        raise UserError(f"{store.root}: no launch of {suite}.{scale} is under way", fix="harness status SUITE")
    for launch in chosen:
        launch.close("cancelled")  # its driver is to see this before it sees jobs end
        if complaint := scancel(f"--name={launch.name}"):
            launch.reopen()
            raise UserError(f"{launch.name}: scancel: {complaint}", fix="try again where and when SLURM answers")
        _wait_for_end(launch)
        console.print(f"cancelled {launch.name}")
    return 0


def logs(store: Store, name: str, lines: int) -> int:
    """Print the end of what a cell has logged; of one that is not settled, of what its last job has printed.

    Args:
        store: where the cell is, or will be.
        name: of its folder, or the beginning of that or of its id.
        lines: of each file, at most.

    Raises:
        UserError: if the name is not that of one cell.
    """
    open_ones = launches(store)
    folder = _only(store, open_ones, name)
    log = store.cell(folder).path / "log.txt"
    owner = None if store.cell(folder).is_settled else last_job(open_ones, folder)
    files = owner[0].logs(owner[1]) if owner else [log] if log.is_file() else []
    if owner and not files:
        print(f"job {owner[1].id or 'of this cell'} has not begun")
    for file in files:
        print(f"── {file}")
        print("\n".join(file.read_text(errors="replace").splitlines()[-lines:]))
    return 0


def _only(store: Store, open_ones: Sequence[Launch], name: str) -> str:
    """The folder of the one cell, in the store or with a job, whose folder or id begins so."""
    places = {place for launch in open_ones for job in launch.jobs for place in job.covers}
    folders = {place.removeprefix("cells/") for place in places if place.startswith("cells/")} | store.cells()
    found = [each for each in folders if each.startswith(name) or each.rpartition("-")[2].startswith(name)]
    if len(found) != 1:
        names = ", ".join(sorted(found)[:5]) or "none"
        raise UserError(f"'{name}' fits {len(found)} cells of {store.root} and its launches: {names}", fix="name one")
    return found[0]


def _wait_for_end(launch: Launch) -> None:
    """Wait until no job of a launch can write any more: SLURM gives each some seconds to end by itself.

    Raises:
        UserError: if that takes longer than it should.
    """
    for _ in range(LAST_WORDS_S):
        with contextlib.suppress(UnreachableError):
            if not any(job.is_live for job in named(launch.name).values()):
                return
        time.sleep(1)
    raise UserError(f"{launch.name}: jobs were cancelled and still run", fix=f"squeue --me --name={launch.name}")
