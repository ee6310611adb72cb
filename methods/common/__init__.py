"""Code shared by several methods. This module does not import torch: implementation names, and checks that refuse a cell."""

from collections.abc import Iterable
from typing import Literal

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.plain_text import counted
from harness.records import DataRef

Implementation = Literal["corrected", "faithful-easyedit"]
"""`corrected` follows the method's paper; `faithful-easyedit` reproduces EasyEdit's code."""

MASKED = frozenset({"full_attention", "sliding_attention"})
"""Types of layers that `methods.common.masks` has masks for."""


def require_masks(target: ModelRef, method: str) -> None:
    """Check that a model obeys additive attention masks, as needed by methods that rerun only a part of each text.

    Raises:
        UserError: if it does not.
    """
    if not target.spec.layout.takes_masks:
        raise UserError(
            f"{method} reruns parts of a text under attention masks of its own, which {target.name} cannot take: it has ALiBi",
            fix="method: one of ft-l, mend, wise, defer",
        )
    if unknown := set(target.spec.settings.get("layer_types") or ()) - MASKED:
        raise UserError(
            f"{method} reruns parts of a text under attention masks of its own, and there are none for layers of type "
            f"{', '.join(sorted(unknown))} in {target.name}",
            fix="method: one of ft-l, mend, wise, defer",
        )


def require_matrices(target: ModelRef, names: Iterable[str]) -> None:
    """Check that the feed-forward module of a model has all of these matrices.

    Raises:
        UserError: if it lacks one.
    """
    known = target.spec.layout.matrices
    if other := [name for name in names if name not in known]:
        raise UserError(f"{target.name} has no feed-forward matrix '{other[0]}'", fix=f"matrices: [{', '.join(known)}]")


def require_layers(target: ModelRef, layers: Iterable[int]) -> None:
    """Check that a model is deep enough for the edited blocks; negative numbers count from the last.

    Raises:
        UserError: if it is not.
    """
    n_layers, edited = target.spec.n_layers, sorted(layers)
    for which, layer in (("last", edited[-1]), ("first", edited[0])):
        if not -n_layers <= layer < n_layers:
            raise UserError(
                f"{target.name} has {n_layers} layers, but the {which} edited one is {layer}",
                fix=f"layers: up to {n_layers - 1}",
            )


def require_subjects(data: DataRef) -> None:
    """Check that each edit has a subject, at whose last token locate-and-edit methods write.

    Raises:
        UserError: if one has none.
    """
    if data.without_subject:
        raise UserError(
            f"the method edits at the subject, but there is none in {counted(data.without_subject, 'edit')} of '{data.name}'",
            fix="add `subject` to the records, or method: one of ft-l, mend, wise, grace",
        )


def require_train(data: DataRef, what: str, train: int = 200, otherwise: str = "") -> None:
    """Check that a dataset has train records.

    Args:
        data: the dataset.
        what: start of the error message; "unrelated records, …" follows.
        train: number of records that the fix suggests.
        otherwise: an alternative to append to the fix.

    Raises:
        UserError: if it has none.
    """
    if not data.train:
        raise UserError(
            f"{what} unrelated records, but dataset '{data.name}' keeps none for training",
            fix=f"datasets: [{{name: {data.name}, train: {train}}}]{otherwise}",
        )


def require_examples(data: DataRef, method: str, least: int = 1) -> int:
    """Count the train records that a hypernetwork can learn from: those with a rephrase and a locality probe.

    Args:
        data: the dataset; if its examples are not counted, all of its train records are taken for such.
        method: name of the method, for the message.
        least: how many it needs.

    Raises:
        UserError: if there are fewer.
    """
    require_train(data, f"{method} trains its hypernetwork on")
    found = data.train if data.examples is None else data.examples
    if found < least:
        raise UserError(
            f"{method} learns from train records with a rephrase and a locality probe, but {found} of the {data.train:,} of "
            f"'{data.name}' have both",
            fix=f"datasets: [{{name: {data.name}, …}}] with fewer `edits`, more `train`, or a `path` with more such records",
        )
    return found
