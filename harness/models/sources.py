"""Where a model's files are: a local folder, a GGUF file, a Python package that carries one, or the Hugging Face hub.

A GGUF file is converted once (see `harness.models.gguf`); from then on it is a folder like any other, identified by its files.
"""

from pathlib import Path

from harness.errors import UserError
from harness.models import checkpoint, gguf, hub, packages
from harness.models.hashes import content_hash


def is_packed(source: str) -> bool:
    """Whether a source is a GGUF file or a package with one, which are converted before they are used."""
    return packages.is_package(source) or source.endswith(packages.GGUF)


def local(source: str) -> Path | None:
    """The folder or converted GGUF file that a source names; None if it is a hub id, or a package that was never fetched.

    Raises:
        UserError: if it can only be a path and does not exist.
    """
    if not is_packed(source):
        return checkpoint.local_folder(source)
    file = packages.weights_file(source) if packages.is_package(source) else _existing(source)
    folder = gguf.cached(content_hash(file)) if file else None
    return folder if folder and folder.is_dir() else None


def obtain(source: str, revision: str = "") -> Path:
    """The checkpoint that a source names, downloaded or converted if it is not on this machine.

    Args:
        source: a folder, a .gguf file, `package:<distribution>`, or a hub id.
        revision: of a hub model.

    Raises:
        UserError: if that is not possible, or its files are damaged or no checkpoint that can be loaded.
    """
    if found := local(source):
        return found
    if not is_packed(source):
        return hub.snapshot(source, revision)
    file = packages.fetch(source) if packages.is_package(source) else _existing(source)
    return gguf.converted(file, content_hash(file))


def _existing(source: str) -> Path:
    file = Path(source).expanduser()
    if not file.is_file():
        raise UserError(f"{source}: no such file", fix=f"ls {file.parent}")
    return file
