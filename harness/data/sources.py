"""Where a dataset's records are: generated here, or in the files of its formats in a folder."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness import registry
from harness.data.formats import Format, recognise
from harness.data.reading import UpstreamFile, from_rows, read
from harness.errors import UserError

SYNTHETIC = "synthetic"
"""The source of generated records; every other source is a folder."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset at one source: the one whose records are edited, and the rest."""

    edited: UpstreamFile
    others: tuple[UpstreamFile, ...]


def find_files(name: str, source: str) -> DatasetFiles:
    """A dataset's files at a source, `synthetic` or a folder, read.

    A file with `train` in its name is edited only if no other can be. Among the rest the order of the dataset's
    `edited_formats` decides, then the path.

    Raises:
        UserError: for an unknown dataset, when the source has none of its records, or when a file is broken.
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
    return DatasetFiles(read(edited), tuple(read(path) for path in found if path != edited))


def upstream_files(folder: Path, remedy: str = "python -m harness data fetch") -> dict[Path, Format]:
    """Every file in a folder, at any depth, that holds editing data, with its format, sorted by path.

    Hidden files and files of any other kind are ignored.

    Raises:
        UserError: when there is no such folder; `remedy` is what the message recommends.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", fix=remedy)
    found = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and (form := recognise(path)):
            found[path] = form
    return found


@cache
def _generated(name: str) -> UpstreamFile:
    info = registry.datasets.get(name)
    if info.synthetic is None:
        raise UserError(f"dataset '{name}' has no synthetic records", fix=info.remedy)
    return from_rows(info.synthetic(), registry.formats.get(info.edited_formats[0]), f"{SYNTHETIC}:{name}")
