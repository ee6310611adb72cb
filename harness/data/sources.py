"""Find a dataset's records: generated ones, or files in a folder."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from harness import registry
from harness.data.formats import Format, recognise
from harness.data.ids import own_ids
from harness.data.reading import UpstreamFile, from_rows, read
from harness.errors import UserError

SYNTHETIC = "synthetic"
"""Source name of generated records; every other source is a folder."""


@dataclass(frozen=True)
class DatasetFiles:
    """Files of a dataset at one source: the one that provides the edits, and the others."""

    edited: UpstreamFile
    others: tuple[UpstreamFile, ...]


def find_files(name: str, source: str) -> DatasetFiles:
    """Find and read a dataset's files at a source, `synthetic` or a folder.

    The file that provides the edits is chosen by the order of the dataset's `edited_formats`, then by path; a file with
    `train` in its name is chosen only if there is no other candidate.

    Raises:
        UserError: for an unknown dataset, a source without its records, or a broken file.
    """
    info = registry.datasets.get(name)
    if source == SYNTHETIC:
        return DatasetFiles(_generated(name), ())
    found = {path: form for path, form in upstream_files(Path(source), info.remedy).items() if form.dataset == name}
    editable = [path for path, form in found.items() if form.name in info.edited_formats]
    if not editable:
        raise UserError(f"{source}: no file of dataset '{name}' in this folder", fix=info.remedy)
    edited = min(
        editable, key=lambda path: ("train" in path.name.lower(), info.edited_formats.index(found[path].name), path)
    )
    return _with_own_ids(DatasetFiles(read(edited), tuple(read(path) for path in found if path != edited)))


def upstream_files(folder: Path, remedy: str = "python -m harness data fetch") -> dict[Path, Format]:
    """Find all editing datasets below a folder, with their formats, sorted by path.

    Hidden and unrecognised files are ignored.

    Raises:
        UserError: if the folder does not exist; the message recommends `remedy`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", fix=remedy)
    found = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and (form := recognise(path)):
            found[path] = form
    return found


def _with_own_ids(found: DatasetFiles) -> DatasetFiles:
    """Rename ids of other files that stand for another question in the edited file or in each other."""
    everything = [record for file in (found.edited, *found.others) for record in file.records]
    return replace(
        found, others=tuple(replace(file, records=own_ids(file.records, everything)) for file in found.others)
    )


@cache
def _generated(name: str) -> UpstreamFile:
    info = registry.datasets.get(name)
    if info.synthetic is None:
        raise UserError(f"dataset '{name}' has no synthetic records", fix=info.remedy)
    return from_rows(info.synthetic(), registry.formats.get(info.edited_formats[0]), f"{SYNTHETIC}:{name}")
