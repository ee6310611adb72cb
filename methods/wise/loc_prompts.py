"""Unrelated prompts that WISE trains against, taken from the train records; an edit must not activate on them."""

import json
from collections.abc import Sequence
from pathlib import Path

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.records import DataRef, Dataset, Probe

VERSION = 1
FILE = "loc_prompts.json"


def artifact(data: DataRef) -> ArtifactSpec:
    """Describe the artifact with the unrelated prompts of a dataset's train records."""
    return ArtifactSpec(
        name="loc-prompts",
        kind="setup",
        identity={"data": data.identity(), "version": VERSION},
        builder="methods.wise.loc_prompts:build",
        inputs={"data": data},
        passes=0,
    )


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Write the unrelated prompts of `spec` to `folder`."""
    probes = loc_probes(context.load_data(spec.inputs["data"]))
    kept = ("prompt", "answer", "has_answer")
    write_json(folder / FILE, [{name: getattr(probe, name) for name in kept} for probe in probes])


def load(folder: Path) -> list[Probe]:
    """Load the probes of an artifact, in the order in which edits use them."""
    return [Probe(**probe) for probe in json.loads((folder / FILE).read_text(encoding="utf-8"))]


def taken(probes: Sequence[Probe], count: int, before: int = 0) -> list[Probe]:
    """The probes for `count` edits that follow `before` earlier ones; probes are reused if there are fewer than edits.

    Raises:
        UserError: if there is none.
    """
    if not probes:
        raise UserError(
            "wise trains against the locality probes of train records, and no train record has one",
            fix="another dataset, or more train records",
        )
    return [probes[number % len(probes)] for number in range(before, before + count)]


def loc_probes(data: Dataset) -> list[Probe]:
    """Locality probes of the train records: the first of each record, then the second of each, and so on.

    Probes of scored records are never used, and prompts that are edited are left out.
    """
    edited = {record.prompt for record in data.edits}
    most = max((len(record.locality) for record in data.train), default=0)
    found: dict[str, Probe] = {}
    for turn in range(most):
        for record in data.train:
            for probe in record.locality[turn : turn + 1]:
                if probe.prompt not in edited:
                    found.setdefault(probe.prompt, probe)
    return list(found.values())
