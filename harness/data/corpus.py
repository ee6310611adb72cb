"""Where a data set's records are: the generated world, or the files of its formats in a folder."""

from dataclasses import dataclass
from pathlib import Path

from harness.data import synthetic
from harness.data.catalogue import dataset_info
from harness.data.formats import Format, recognise
from harness.data.reading import UpstreamFile, read
from harness.errors import UserError

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Corpus:
    """The files of a data set at one source: the one whose records are edited, and the rest."""

    edited: UpstreamFile
    others: tuple[UpstreamFile, ...]


def find(name: str, source: str) -> Corpus:
    """The data set's records at a source, `synthetic` or a folder.

    A file with `train` in its name is edited only where no other can be. Among the rest the catalogue's preferred
    format decides, then the path.

    Raises:
        UserError: when there is none, or when one is broken.
    """
    info = dataset_info(name)
    if source == SYNTHETIC:
        return Corpus(synthetic.records(name), ())
    found = {path: form for path, form in upstream_files(Path(source), name).items() if form.dataset == name}
    editable = [path for path, form in found.items() if form.name in info.edited_formats]
    if not editable:
        raise UserError(
            f"{source}: no file of data set '{name}' in this folder", fix=f"python -m harness data fetch {name}"
        )
    edited = min(
        editable, key=lambda path: ("train" in path.name.lower(), info.edited_formats.index(found[path].name), path)
    )
    return Corpus(read(edited), tuple(read(path) for path in found if path != edited))


def upstream_files(folder: Path, name: str = "") -> dict[Path, Format]:
    """Every file in a folder, at any depth, that holds editing data, with its format, sorted by path.

    Hidden files and files of any other kind are passed over.

    Raises:
        UserError: when there is no such folder; `name` is the data set that the message says how to fetch.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", fix=f"python -m harness data fetch {name}".rstrip())
    found = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and (form := recognise(path)):
            found[path] = form
    return found
