"""Find a dataset's records: generated ones, or files in a folder."""

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeGuard

from harness import registry
from harness.commands import harness_command
from harness.data.formats import Foreign, Format, recognise
from harness.data.ids import own_ids
from harness.data.reading import UpstreamFile, from_rows, read
from harness.errors import UnavailableError, UserError

SYNTHETIC = "synthetic"
"""Source name of generated records; every other source is a folder."""


@dataclass(frozen=True)
class DatasetFiles:
    """Files of a dataset at one source: the one that provides the edits, and the others."""

    edited: UpstreamFile
    others: tuple[UpstreamFile, ...]


def find_files(name: str, source: str, file: str = "") -> DatasetFiles:
    """Find and read a dataset's files at a source, `synthetic` or a folder.

    The file that provides the edits is `file` if given; otherwise it is chosen by the order of the dataset's
    `edited_formats`, then by path, and a file with the word `train` in its name only if there is no other candidate.

    Args:
        name: name of the dataset.
        source: `synthetic` or a folder.
        file: the file that provides the edits, relative to the folder.

    Raises:
        UserError: for an unknown dataset, a source without its records, or a damaged file.
    """
    info = registry.datasets.get(name)
    if source == SYNTHETIC:
        if file:
            raise UserError(f"{name}: synthetic records have no file '{file}'", fix="name its folder with --data DIR")
        return DatasetFiles(_generated(name), ())
    recognised = upstream_files(Path(source), info.remedy(Path(source)))
    found = {path: form for path, form in recognised.items() if isinstance(form, Format) and form.dataset == name}
    editable = [path for path, form in found.items() if form.name in info.edited_formats]
    if file:
        if Path(source, file) not in editable:
            raise _no_edits(name, Path(source), file, [path.relative_to(source) for path in editable])
        editable = [Path(source, file)]
    if not editable:
        near = [f"{path}: {form.reason}" for path, form in recognised.items() if _is_near(form, name)]
        raise UnavailableError(
            f"{source}: no file of dataset '{name}' in this folder{f' ({near[0]})' if near else ''}",
            fix=harness_command("data", "list", data=source) if near else info.remedy(Path(source)),
        )
    edited = min(editable, key=lambda path: (is_train(path), info.edited_formats.index(found[path].name), path))
    return _with_own_ids(DatasetFiles(read(edited), tuple(read(path) for path in found if path != edited)))


def _no_edits(name: str, source: Path, file: str, editable: list[Path]) -> UserError:
    """The error for a `file` that is not one of the files with edits."""
    path = source / file
    problem = "is a folder, but a file is expected" if path.is_dir() else "no such file"
    if path.is_file():
        problem = f"not a file with edits of dataset '{name}'"
    inside = [each for each in editable if each.is_relative_to(file)]
    near = inside or [each for each in editable if each.name == path.name] or editable
    listed = ", ".join(map(str, editable)) or "none"
    return UserError(
        f"{path}: {problem} (files with edits of '{name}' in {source}: {listed})",
        fix=f"file: {near[0]}" if near else harness_command("data", "list", data=source),
    )


def is_train(path: Path) -> bool:
    """Whether `train` is a whole word of a file name: in `zsre_mend_train.json` and `train-v2.json`, not in `training.json`."""
    return "train" in re.findall(r"[a-z]+", path.name.lower())


def upstream_files(folder: Path, remedy: str = "") -> dict[Path, Format | Foreign]:
    """Find the format of every file below a folder, sorted by path; hidden files are ignored.

    Raises:
        UserError: if it is not a folder; for one that does not exist, the message recommends `remedy`.
    """
    if folder.is_file():
        raise UserError(
            f"{folder}: a file where a folder is expected", fix=harness_command("data", "list", data=folder.parent)
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", fix=remedy or harness_command("data", "fetch", to=folder))
    visible = (
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return {path: recognise(path) for path in visible if path.is_file()}


def _is_near(form: Format | Foreign, name: str) -> TypeGuard[Foreign]:
    """Whether a file would be one of the dataset's but for a missing field."""
    titles = [known.title for known in registry.formats.all().values() if known.dataset == name]
    return isinstance(form, Foreign) and any(form.reason.endswith(title) for title in titles)


def _with_own_ids(found: DatasetFiles) -> DatasetFiles:
    """Rename ids of other files that denote a different question in the edited file or in one another."""
    everything = [record for file in (found.edited, *found.others) for record in file.records]
    return replace(
        found, others=tuple(replace(file, records=own_ids(file.records, everything)) for file in found.others)
    )


@cache
def _generated(name: str) -> UpstreamFile:
    info = registry.datasets.get(name)
    if info.synthetic is None:
        raise UnavailableError(f"dataset '{name}' has no synthetic records", fix=info.remedy())
    return from_rows(info.synthetic(), registry.formats.get(info.edited_formats[0]), f"{SYNTHETIC}:{name}")
