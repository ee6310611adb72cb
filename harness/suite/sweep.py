"""Sweeps: replace an entry of an axis with one entry per combination of values.

`methods.onceedit.hparams.lambda_weight: [0, 0.2]` turns the entry `onceedit` into two. Several keys for one entry form a
grid; keys for different entries are independent. An entry is addressed by its name or label.
"""

import re
from collections.abc import Mapping
from itertools import product

from harness.errors import UserError, did_you_mean
from harness.suite.schema import MethodForm, SuiteForm
from harness.yaml_source import Located

AXES = ("models", "methods", "datasets")


def expand(document: Located, form: SuiteForm) -> Located:
    """Expand the sweep of a suite and remove the key.

    Args:
        document: a suite file.
        form: the validated document.

    Raises:
        UserError: for a key that names no axis, entry or option.
    """
    sweep = document.value.get("sweep")
    if sweep is None:
        return document
    wanted: dict[tuple[str, int], dict[tuple[str, ...], Located]] = {}
    for key, values in sweep.value.items():
        axis, indices, option = _target(key, values, form)
        for index in indices:
            wanted.setdefault((axis, index), {})[option] = values
    expanded = {key: item for key, item in document.value.items() if key != "sweep"}
    for axis in AXES:
        entries = [
            copy
            for index, entry in enumerate(document.value[axis].value)
            for copy in _copies(entry, form, axis, index, wanted.get((axis, index), {}))
        ]
        expanded[axis] = Located(entries, document.value[axis].file, document.value[axis].line)
    return Located(expanded, document.file, document.line)


def _target(key: str, values: Located, form: SuiteForm) -> tuple[str, list[int], tuple[str, ...]]:
    axis, _, rest = key.partition(".")
    if axis not in AXES:
        raise UserError(
            f"{values.where}: sweep: '{key}' must start with one of {', '.join(AXES)}{did_you_mean(axis, AXES)}; "
            "other axes are already lists"
        )
    names = _names(form, axis)
    known = {name for entry in names for name in entry}
    entry = max((name for name in known if rest.startswith(f"{name}.")), key=len, default=None)
    if entry is None:
        guess = did_you_mean(rest.split(".")[0], known)
        raise UserError(f"{values.where}: sweep: '{key}' matches no entry of {axis}{guess}; known: {', '.join(known)}")
    option = tuple(rest.removeprefix(f"{entry}.").split("."))
    if not all(option) or option[-1] in {"name", "label"}:
        raise UserError(f"{values.where}: sweep: '{key}' does not name an option to vary")
    return axis, [index for index, entries in enumerate(names) if entry in entries], option


def _names(form: SuiteForm, axis: str) -> list[set[str]]:
    return [
        {entry.name, entry.shown} if isinstance(entry, MethodForm) else {entry.name} for entry in getattr(form, axis)
    ]


def _copies(
    entry: Located, form: SuiteForm, axis: str, index: int, sweeps: Mapping[tuple[str, ...], Located]
) -> list[Located]:
    if not sweeps:
        return [entry]
    if not isinstance(entry.value, dict):
        entry = Located({"name": entry}, entry.file, entry.line)
    copies = []
    for combination in product(*(values.value for values in sweeps.values())):
        copy = entry
        for option, value in zip(sweeps, combination, strict=True):
            copy = copy.replaced(option, value)
        if axis == "methods":
            marks = [f"{option[-1]}={value.value}" for option, value in zip(sweeps, combination, strict=True)]
            label = re.sub(r"[^A-Za-z0-9.+=_-]", "_", ".".join([form.methods[index].shown, *marks]))
            copy = copy.replaced(("label",), Located(label, entry.file, entry.line))
        copies.append(copy)
    return copies
