"""The manifest of a suite: all its cells at a scale, run or not, for reports and MLflow.

There is one per suite, scale and variant (`--data` in place of a scale's own records, `--edits`, `--backend`), in
`<store>/suites/`. `--only` decides what runs and does not change which cells a manifest lists.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from harness.commands import harness_command
from harness.errors import UserError, did_you_mean
from harness.files import understood, write_json

INSTALLED = "installed:"
"""In place of the folder of suites that ship with the harness."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A combination of a suite's axes whose cell is not known, for example because the model's weights are missing.

    Attributes:
        stem: what the name of its folder begins with, `<label>-<model>-<dataset>`.
        reason: why, in one line.
        was_asked: whether a run was to include it, so that tables show it as missing.
        name: of the combination, from `numbered`.
    """

    stem: str
    reason: str
    was_asked: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The cells of a suite, as of its last run.

    Attributes:
        variant: what the command line put in place of the suite's own settings; empty for the suite as written.
        created: when that run began; UTC, ISO.
        command: the command of that run.
        file: the suite file, as an absolute path, or `installed:<file name>`.
        file_from_store: the same, relative to the store.
        sha256: hash of what the file says.
        edits, backend, data: options of the command line.
        published: name of published numbers that tables show next to measured ones, or empty.
        records: hash of the records by dataset.
        cells: folders of all cells that are known, each once, in the order of the suite.
        combinations: the folder of the cell of each combination, by its name from `numbered`.
        unresolved: the combinations without a known cell.
    """

    suite: str
    scale: str
    created: str
    command: str
    cells: tuple[str, ...]
    tables: tuple[str, ...]
    figures: tuple[str, ...] = ()
    published: str = ""
    variant: str = ""
    file: str = ""
    file_from_store: str = ""
    sha256: str = ""
    edits: int | None = None
    backend: str | None = None
    data: str = ""
    records: Mapping[str, str] = field(default_factory=dict)
    combinations: Mapping[str, str] = field(default_factory=dict)
    unresolved: tuple[Unresolved, ...] = ()

    @property
    def name(self) -> str:
        """Name of the manifest, of the report's folder and of the run in MLflow."""
        return ".".join(part for part in (self.suite, self.scale, self.variant) if part)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the command line, apart from the scale, by name."""
        return {"data": self.data, "edits": self.edits, "backend": self.backend}

    @property
    def numbers(self) -> dict[str, int]:
        """By folder, the number of its combination among those with the same stem; the smallest of several.

        All stems have their combinations in the same order, so equal numbers mean equal settings on a dataset.
        """
        return {folder: number_of(name) for name, folder in reversed(list(self.combinations.items()))}

    def again(self, verb: str, store: Path) -> str:
        """The command line of a verb for the whole suite; the last command if the suite's file is not known."""
        if not self.file:
            return self.command
        named = Path(self.file.removeprefix(INSTALLED)).stem if self.file.startswith(INSTALLED) else self.file
        scale = "" if self.scale == "paper" else self.scale
        return harness_command(verb, named, scale=scale, **self.options, store=store)

    def after(self, earlier: "Manifest | None", names: Sequence[str]) -> "Manifest":
        """This manifest, with cells of an earlier one where this one has none; both must have the same content.

        Args:
            earlier: None if there is none.
            names: of all combinations, in the order of the suite.
        """
        if earlier is None or earlier.sha256 != self.sha256:
            return self
        asked = {each.stem for each in earlier.unresolved if each.was_asked}
        found = {**earlier.combinations, **self.combinations}
        combinations = {name: found[name] for name in names if name in found}
        return replace(
            self,
            cells=tuple(dict.fromkeys(combinations.values())),
            combinations=combinations,
            unresolved=tuple(
                replace(each, was_asked=each.was_asked or each.stem in asked)
                for each in self.unresolved
                if each.name not in combinations
            ),
        )

    def write(self, store: Path) -> None:
        """Replace the file atomically."""
        write_json(_file(store, self.name), {**asdict(self), "again": self.again("run", store)})


def numbered(stems: Iterable[str]) -> list[str]:
    """Names of combinations, from their stems in the order of the suite: those with the same stem are counted.

    Settings such as the prompt template or the revision of a model may differ where the stem does not, and are not all known
    while files are missing.
    """
    counts = Counter[str]()
    names = []
    for stem in stems:
        counts[stem] += 1
        names.append(f"{stem}#{counts[stem]}")
    return names


def number_of(name: str) -> int:
    """The number that `numbered` gave to a combination; 0 without a name."""
    return int(name.rpartition("#")[2] or 0)


def stem_of(folder: str) -> str:
    """The name of a cell's folder without the hash."""
    return folder.rpartition("-")[0]


def read_manifest(store: Path, name: str) -> Manifest | None:
    """The manifest of this name; None if there is none."""
    file = _file(store, name)
    return _read(file) if file.is_file() else None


def manifests(store: Path) -> list[Manifest]:
    """All manifests of a store, by name."""
    return [_read(file) for file in sorted((store / "suites").glob("[!.]*.json"), key=lambda file: file.stem)]


class Options(TypedDict, total=False):
    """Command-line options that give a suite different cells, and so a separate manifest."""

    edits: int | None
    backend: str | None
    data: str | None


def find_manifest(store: Path, suite: str, scale: str, **options: Unpack[Options]) -> Manifest:
    """The manifest of a suite at a scale that matches the command-line options.

    Without options, the only variant will do.

    Raises:
        UserError: if the suite was not run like that; names what was run.
    """
    edits, backend, data = options.get("edits"), options.get("backend"), options.get("data")
    known = manifests(store)
    of_scale = [each for each in known if (each.suite, each.scale) == (suite, scale)]
    fitting = [each for each in of_scale if (each.edits, each.backend) == (edits, backend)]
    exact = [each for each in fitting if bool(each.data) == bool(data)]
    for candidates in (exact, fitting, [] if edits or backend or data else of_scale):
        if len(candidates) == 1:
            return candidates[0]
    raise _not_run(store, suite, scale, known)


def _not_run(store: Path, suite: str, scale: str, known: Sequence[Manifest]) -> UserError:
    """The error for a suite without a manifest: names how it was run, or a suite with a similar name."""
    text = f"{store}: suite '{suite}' has not been run at scale '{scale}' in this store"
    same = [each for each in known if each.suite == suite]
    if same:
        scales = list(dict.fromkeys(each.scale for each in same))
        first = next((each for each in same if each.scale == scale), same[0])
        report = harness_command("report", suite, scale=first.scale, **first.options, store=store)
        if scale in scales:
            ways = ", ".join(_shown(each) for each in same if each.scale == scale)
            return UserError(f"{text} with these options, only with {ways}", fix=report)
        return UserError(f"{text}, only at {', '.join(scales)}", fix=report)
    return UserError(
        f"{text}{did_you_mean(suite, {each.suite for each in known})}",
        fix=harness_command("run", suite, scale=scale, store=store),
    )


def _shown(manifest: Manifest) -> str:
    options = " ".join(f"--{name} {value}" for name, value in manifest.options.items() if value)
    return f"'{options}'" if options else "no option"


def _file(store: Path, name: str) -> Path:
    return store / "suites" / f"{name}.json"


def _read(file: Path) -> Manifest:
    with understood(file):
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        lists = {key: tuple(content.get(key, ())) for key in ("cells", "tables", "figures")}
        unresolved = tuple(Unresolved(**each) for each in content.get("unresolved", ()))
        known = {key: value for key, value in content.items() if key in Manifest.__dataclass_fields__}
        known |= {key: content[key] for key in ("suite", "scale", "created", "command", "cells", "tables")}
        if "combinations" not in content:  # written by an earlier version
            cells = list(dict.fromkeys(lists["cells"]))
            known["combinations"] = dict(zip(numbered(map(stem_of, cells)), cells, strict=True))
        return Manifest(**{**known, **lists, "unresolved": unresolved})
