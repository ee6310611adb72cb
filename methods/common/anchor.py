"""Reference norms of values: the mean over facts whose values are optimised on the unedited model (Norm-Anchor Scaling).

In a sequence of edits, longer values make a matrix larger, and a larger matrix makes values longer. Values that are all rescaled
to one norm do not (Liu et al. 2026, arXiv 2602.02543). The norms are an artifact, computed from the train records of a dataset.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from methods.common import prefixes, require_train
from methods.common.layers import TracedLayers

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.records import EditRecord
    from methods.common.closed_form import ClosedFormHparams, ValueHparams
    from methods.common.rewrites import Rewrite
    from methods.common.values import Scale

VERSION = 1
ROLE = "anchor"
FILE = "norms.json"

LONGEST = 0.05
"""Share of the values, the longest ones, that the mean leaves out, as in the public code."""
TOGETHER = 8
"""Facts whose values are optimised together."""


def artifact(
    target: ModelRef, data: DataRef, hparams: "ClosedFormHparams", contexts: ArtifactSpec, facts: int, seed: int
) -> ArtifactSpec:
    """The reference norms of a model's values.

    Args:
        target: the unedited model.
        data: dataset whose first train records are the facts.
        hparams: how values are optimised, and in which layers.
        contexts: the context prefixes.
        facts: number of facts.
        seed: of the causal trace, if that decides the layers.

    Raises:
        UserError: if there are no train records, or the model normalises its values.
    """
    from methods.common.closed_form import ValueHparams

    require_train(data, "reference norms of values are computed from", otherwise=", or norm_anchor: null")
    if target.spec.layout.value_norm is not None:
        raise UserError(
            f"norm_anchor decides the norm of values, but {target.name} normalises them before it adds them to the stream",
            fix="norm_anchor: null",
        )
    layers, inputs = hparams.layers, {"model": target, "data": data}
    needs = {**target.artifacts(), "prefixes": contexts}
    if isinstance(layers, TracedLayers):
        inputs["layers"], needs["layers"] = layers, layers.artifact(target, data, seed)
    return ArtifactSpec(
        name="value-norms",
        kind="setup",
        identity={
            "model": target.identity(),
            "data": data.identity(),
            "hparams": hparams.model_dump(mode="json", include=set(ValueHparams.model_fields) - {"layers"}),
            "layers": layers.written() if isinstance(layers, TracedLayers) else layers,
            "scale": hparams.scale,
            "facts": facts,
            "version": VERSION,
        },
        builder="methods.common.anchor:build",
        inputs=inputs,
        needs=needs,
        passes=min(facts, data.train) * hparams.passes_per_edit,
        memory=hparams.value_memory(target.footprint, TOGETHER),
    )


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Optimise the values of the facts of `spec` and write the mean of their norms, layer by layer.

    Raises:
        UserError: if none of the train records can be edited.
    """
    from methods.common.closed_form import ValueHparams

    model, identity, layers = context.load_model(spec.inputs["model"]), spec.identity, spec.identity["layers"]
    if "layers" in spec.needs:
        layers = spec.inputs["layers"].value(context.artifact(spec.needs["layers"]))
    if identity["scale"] == "stream":  # a target for the stream after the last layer, reached with that layer's value
        layers = layers[-1:]
    hparams = ValueHparams.model_validate({**identity["hparams"], "layers": layers})
    front, data = prefixes.load(context.artifact(spec.needs["prefixes"])), context.load_data(spec.inputs["data"])
    facts = list(islice(_editable(model, data.train, front, hparams), identity["facts"]))
    if not facts:
        raise UserError(f"none of the train records of '{data.ref.name}' can be edited", fix="norm_anchor: null")
    norms: dict[int, list[float]] = {layer: [] for layer in layers}
    with context.progress("reference norms of values", len(facts)) as advance, context.clock.phase("setup"):
        for start in range(0, len(facts), TOGETHER):
            group = facts[start : start + TOGETHER]
            for layer, found in value_norms(model, group, hparams, identity["scale"]).items():
                norms[layer] += found
            advance(len(group))
    write_json(folder / FILE, {"facts": len(facts), "norms": {layer: typical(found) for layer, found in norms.items()}})


def load(folder: Path) -> dict[int, float]:
    """The reference norm of each layer's values."""
    written = json.loads((folder / FILE).read_text(encoding="utf-8"))["norms"]
    return {int(layer): float(norm) for layer, norm in written.items()}


def value_norms(
    model: "LoadedModel", facts: Sequence["Rewrite"], hparams: "ValueHparams", scale: "Scale"
) -> dict[int, list[float]]:
    """Norm of each fact's optimised value v + δ, in each layer by itself; the model is not changed."""
    from methods.common.aligned import advance, enter
    from methods.common.values import solve

    at, norms = hparams.layers[0], {}
    stream = enter(model, [row for made in facts for row in made.rows], at)
    for layer in hparams.layers:
        stream = advance(model, stream, at, layer)
        at = layer
        _, went, value = solve(model, facts, stream, layer, hparams, scale)
        values_ND = went.values_BV[:: len(facts[0].rows)] + value.delta_ND
        norms[layer] = values_ND.norm(dim=-1).tolist()
    return norms


def typical(norms: Sequence[float]) -> float:
    """The mean of all but the largest norms."""
    kept = sorted(norms)[: len(norms) - int(LONGEST * len(norms))]
    return sum(kept) / len(kept)


def _editable(
    model: "LoadedModel", records: Sequence["EditRecord"], front: Sequence[str], hparams: "ValueHparams"
) -> Iterator["Rewrite"]:
    """The records that can be edited, as token rows."""
    from methods.common.rewrites import rewrite

    for record in records:
        with contextlib.suppress(UserError):
            yield rewrite(model, record.request(), front, hparams.target_tokens)
