"""Read the form of a suite file, and tell whether two files under one name are the same suite."""

from pathlib import Path

from harness.commands import harness_command
from harness.errors import UserError
from harness.identity import digest
from harness.store import manifest
from harness.store.manifest import Manifest
from harness.suite.entries import SuiteSource
from harness.suite.scale import INSTALLED
from harness.suite.schema import SuiteForm
from harness.suite.sweep import expand
from harness.yaml_source import Located, merge, read_chain, validate


def read_form(path: Path) -> tuple[Located, SuiteForm]:
    """Read a suite file, merge its bases and expand its sweep.

    Raises:
        UserError: for a mistake in the files.
    """
    chain = read_chain(path, INSTALLED)
    document = chain[0]
    for over in chain[1:]:
        document = merge(document, over)
    if "name" in document.value and "name" not in chain[-1].value:
        raise UserError(
            f"{path}:1: a suite that extends another needs its own name, or their results would be mixed up"
        )
    schema_command = harness_command("schema")
    form = validate(SuiteForm, document, fix=schema_command)
    expanded = expand(document, form)
    return expanded, validate(SuiteForm, expanded, fix=schema_command)


def source_of(path: Path, form: SuiteForm) -> SuiteSource:
    """Where a suite that was read from a file comes from."""
    file, content = path.resolve(), form.model_dump(mode="json", exclude={"judge"})  # asked about finished cells
    content["methods"] = [
        {**entry.model_dump(mode="json", exclude=set(entry.loose)), "hparams": {**entry.loose, **entry.hparams}}
        for entry in form.methods
    ]
    is_installed = file.parent == INSTALLED.resolve()
    return SuiteSource(form.name, f"{manifest.INSTALLED}{file.name}" if is_installed else str(file), digest(content))


def read_source(path: Path) -> SuiteSource:
    """The origin of a suite, without resolving anything in its file.

    Raises:
        UserError: for a mistake in the file.
    """
    return source_of(path, read_form(path)[1])


def refuse_rival(earlier: Manifest, now: SuiteSource, store: Path) -> None:
    """Stop if a store has results of a different suite with the same name.

    A suite remains the same when its file is edited, moved or copied along with its store. It is another one if the
    content differs and the earlier file still exists elsewhere and still has that name.

    Raises:
        UserError: names both files.
    """
    if earlier.suite != now.name or earlier.sha256 == now.sha256 or now.file in (earlier.file, _near(store, earlier)):
        return
    file = _path(earlier.file)
    if file.is_file() and _has_name(file, now.name):
        raise UserError(
            f"{store}: '{now.name}' is the name of two different suites, {_path(now.file)} and {file}, and this store has "
            "the results of the latter",
            fix=f"another `name:` in {_path(now.file)}, or another --store",
        )


def _has_name(file: Path, name: str) -> bool:
    try:
        return read_source(file).name == name
    except UserError:  # perhaps half edited
        return True


def _path(file: str) -> Path:
    is_installed = file.startswith(manifest.INSTALLED)
    return INSTALLED / file.removeprefix(manifest.INSTALLED) if is_installed else Path(file)


def _near(store: Path, earlier: Manifest) -> str:
    return str((store.resolve() / earlier.file_from_store).resolve())
