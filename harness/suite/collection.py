"""Suites of suites: a file that names other suites, which commands process one after another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from harness.commands import harness_command
from harness.errors import UserError
from harness.suite.load import find_suite
from harness.suite.schema import Label
from harness.yaml_source import Located, StrictModel, read_yaml, validate


class CollectionForm(StrictModel):
    """A file that names other suites; it has no models, methods or datasets of its own."""

    name: Label = Field(description="name of the document that a report makes of all of them")
    description: str = ""
    suites: list[str] = Field(
        min_length=1, description="names of suites, or files relative to this one; they may name other suites in turn"
    )


@dataclass(frozen=True, slots=True)
class Collection:
    """A suite of suites.

    Attributes:
        suites: what the command line would name them, each once, in order; none of them is a collection.
    """

    name: str
    description: str
    suites: tuple[str, ...]


def read_collection(path: Path) -> Collection | None:
    """Read a suite of suites; None if the file is an ordinary suite.

    Raises:
        UserError: for a mistake in the file, a suite that does not exist, or suites that name each other in a circle.
    """
    document = read_yaml(path)
    if "suites" not in document.value:
        return None
    form = _form(document)
    return Collection(form.name, form.description, tuple(dict.fromkeys(_members(path, document, ()))))


def _form(document: Located) -> CollectionForm:
    return validate(CollectionForm, document, fix=harness_command("list", "suites"))


def _members(path: Path, document: Located, above: tuple[Path, ...]) -> Iterator[str]:
    """The ordinary suites below a collection, depth first."""
    above = (*above, path.resolve())
    for index, name in enumerate(_form(document).suites):
        where = document.at(("suites", index)).where
        try:
            word = name if not name.endswith((".yaml", ".yml")) else str(path.parent / Path(name).expanduser())
            file = find_suite(word)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", fix=error.fix) from None
        if file.resolve() in above:
            circle = " → ".join(each.name for each in [*above, file])
            raise UserError(f"{where}: suites: files name each other in a circle: {circle}")
        member = read_yaml(file)
        if "suites" in member.value:
            yield from _members(file, member, above)
        else:
            yield word
