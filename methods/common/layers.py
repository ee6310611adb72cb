"""Layers of a method as hyper-parameters: numbers, or `traced`, which leaves the choice to causal tracing (Meng et al. 2022)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import AfterValidator, Field, ValidationError

from harness.api import ArtifactSpec, Choice, OrChoice
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from harness.tracing import artifact as tracing
from harness.tracing.artifact import TraceOptions
from harness.yaml_source import complaint
from methods.common import require_train

WORD = "traced"


class TracedLayer(TraceOptions, Choice):
    """The layer whose feed-forward outputs have the largest average indirect effect at the subject's last token.

    Written `traced`, or `{traced: {facts: 50, samples: 3}}` with options of the trace.
    """

    name: ClassVar[str] = WORD

    def artifact(self, target: ModelRef, data: DataRef, seed: int) -> ArtifactSpec:
        """The causal trace.

        Raises:
            UserError: if the dataset keeps no records for training.
        """
        return trace_of(target, data, self, seed)

    def value(self, folder: Path) -> int | list[int]:
        """The layer."""
        from harness.tracing.trace import Trace

        return Trace.load(folder).decisive_layer()

    @classmethod
    def is_written(cls, value: Any) -> bool:
        """`traced`, or a mapping from that word to options."""
        return value == WORD or (isinstance(value, Mapping) and set(value) == {WORD})

    @classmethod
    def read(cls, written: Any) -> Self:
        """The word alone, or with options.

        Raises:
            ValueError: for invalid options.
        """
        options = {} if written == WORD else written[WORD]
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join([WORD, *map(str, first['loc'])])}: {complaint(first)}") from None

    def written(self) -> dict[str, Any]:
        """All options."""
        return {WORD: self.model_dump(mode="json")}


class TracedLayers(TracedLayer):
    """Consecutive layers that end at that of `TracedLayer`; fewer if they would start before the first block.

    MEMIT edits a range that ends at the last layer on the path of recall, so that all of them take part (Meng et al. 2023,
    §4.1). Its authors find that layer by also severing feed-forward outputs, which is not measured here.

    Attributes:
        count: number of layers.
    """

    count: int = Field(1, ge=1)

    def value(self, folder: Path) -> list[int]:
        """The layers in ascending order."""
        from harness.tracing.trace import Trace

        last = Trace.load(folder).decisive_layer()
        return list(range(max(0, last - self.count + 1), last + 1))


class FiveTracedLayers(TracedLayers):
    """Five layers by default, as MEMIT's authors edit on GPT-NeoX, and six on GPT-J."""

    count: int = Field(5, ge=1)


def trace_of(target: ModelRef, data: DataRef, options: TraceOptions, seed: int) -> ArtifactSpec:
    """The causal trace of a model on the train records of a dataset.

    Raises:
        UserError: if there are none.
    """
    require_train(data, "causal tracing uses")
    return tracing.artifact(target, data, options, seed)


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise ValueError("layers must ascend")
    return layers


_Numbers: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_ascending)
]

Layer: TypeAlias = Annotated[int, Field(ge=0), OrChoice(TracedLayer)]
"""One layer, or `traced`."""
Layers: TypeAlias = Annotated[_Numbers, OrChoice(TracedLayers)]
"""Layers in ascending order, or `traced`, which is one layer by default."""
ManyLayers: TypeAlias = Annotated[_Numbers, OrChoice(FiveTracedLayers)]
"""The same for a method that spreads its edits: `traced` is five layers by default."""


def blocks_above(layer: int | TracedLayer, n_layers: int, *, including: bool = False) -> int:
    """Number of blocks above a layer, or from it on; of a layer that is not decided, as many as there may be."""
    from_it_on = n_layers if isinstance(layer, TracedLayer) else n_layers - layer
    return from_it_on if including else from_it_on - 1


def count(layers: Sequence[int] | TracedLayers) -> int:
    """Number of layers, decided or not; at the beginning of a model there may be fewer."""
    return layers.count if isinstance(layers, TracedLayers) else len(layers)
