"""Locate a model's files: a local folder, a GGUF file, a Python package with one, or the Hugging Face hub.

A GGUF file is converted once (see `harness.models.gguf`); from then on it is a folder like any other, identified by its files.
"""

from pathlib import Path

from harness.commands import harness_command, list_around
from harness.errors import UnavailableError, UserError
from harness.models import checkpoint, gguf, hub, packages
from harness.models.hashes import content_hash
from harness.models.spec import ModelSpec, of_folder, of_gguf


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


def spec_of(source: str, revision: str = "", otherwise: ModelSpec | None = None) -> ModelSpec:
    """Properties of the model that a source names, without loading its weights.

    Of a hub model, configuration and tokenizer are downloaded if they are not on this machine.

    Args:
        source, revision: as for `obtain`.
        otherwise: what is known about it anyway, for a source that is not on this machine.

    Raises:
        UserError: if its files are damaged or describe no model that can be edited.
        UnavailableError: if they are not on this machine and nothing is known about it.
    """
    if found := local(source):
        return of_folder(found)
    if not is_packed(source):
        if snapshot := hub.complete_snapshot(source, revision):
            return of_folder(snapshot)
        return otherwise or of_folder(hub.description(source, revision), is_complete=False)
    file = packages.weights_file(source) if packages.is_package(source) else _existing(source)
    if file:
        return of_gguf(file)
    if otherwise:
        return otherwise
    raise UnavailableError(
        f"{source} is not on this machine, and only its files say what model it is",
        fix=harness_command("models", "fetch", source),
    )


def _existing(source: str) -> Path:
    file = Path(source).expanduser()
    if not file.is_file():
        raise UserError(f"{source}: no such file", fix=list_around(file))
    return file
