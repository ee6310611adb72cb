"""From tasks to the arrays that SLURM is asked for: resource classes, packs, waves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness.plan.plan import Plan
from harness.run.task import Task
from harness.run.work import Unit, waves
from slurm import resources
from slurm.profile import SlurmProfile
from slurm.retry import Work


def works(plan: Plan, profile: SlurmProfile, tasks: Sequence[Task]) -> tuple[dict[str, Work], list[str]]:
    """Each task with the resource class that it is thought to need, by place; and notes on those that need more than there is."""
    names = [each.name for each in profile.resources]
    found, notes = {}, []
    for task in tasks:
        chosen, note = resources.choose(Unit(task.place, plan.store.root, (task,), plan.device, None), profile)
        needs = tuple(f"artifacts/{need.name}/{need.key}" for need in task.needs)
        found[task.place] = Work(task.place, needs, names.index(chosen.name))
        notes += [note] if note else []
    return found, notes


def arrays(
    plan: Plan, profile: SlurmProfile, tasks: Mapping[str, Task], submitted: Mapping[str, int], largest: int
) -> Iterator[tuple[list[Unit], int]]:
    """Units that are one array, with the number of their resource class.

    Args:
        plan: what the tasks are of.
        profile: how many of them are a unit.
        tasks: by place.
        submitted: number of the resource class by place, needs before what needs them.
        largest: units of an array, at most.
    """
    root, patience_s = plan.store.root.resolve(), float(profile.settle_s)

    def fits(pack: Sequence[Task]) -> bool:
        wanted = {submitted[task.place] for task in pack}
        return len(wanted) == 1 and resources.fits(pack, plan.device, profile.resources[wanted.pop()])

    for wave in waves(plan, [tasks[place] for place in submitted], profile.packing, fits):
        by_class: dict[int, list[Unit]] = {}
        for unit in wave:
            fitted = replace(unit, store=root, device=plan.device, patience_s=patience_s)
            by_class.setdefault(submitted[unit.tasks[0].place], []).append(fitted)
        for number, units in sorted(by_class.items()):
            for start in range(0, len(units), largest):
                yield units[start : start + largest], number
