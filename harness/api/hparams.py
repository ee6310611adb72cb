"""Hyper-parameters of a method, and choices: values that an artifact decides when a cell runs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from harness.api.artifact import ArtifactSpec
from harness.records import DataRef

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from harness.models.catalogue import ModelRef


class Choice(BaseModel, ABC):
    """In place of a hyper-parameter's value: an artifact that decides it when the cell runs.

    Identities contain the artifact's key, not the resulting value. A field of `Hparams` accepts one kind of choice if
    its type is annotated with `OrChoice`; `Hparams.decided` replaces it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def artifact(self, target: "ModelRef", data: DataRef, seed: int) -> "ArtifactSpec":
        """The artifact. Must not import torch or read files.

        Raises:
            UserError: if it cannot be built here, with the reason.
        """

    @abstractmethod
    def value(self, folder: Path) -> Any:
        """The value, JSON-like, according to the finished artifact in `folder`."""

    @classmethod
    @abstractmethod
    def is_written(cls, value: Any) -> bool:
        """Whether a suite or a file of hyper-parameters asks for a choice here, with valid options or not."""

    @classmethod
    @abstractmethod
    def read(cls, written: Any) -> Self:
        """The choice that is asked for.

        Raises:
            ValueError: for invalid options.
        """

    @abstractmethod
    def written(self) -> Any:
        """JSON-like form that `read` understands."""


@dataclass(frozen=True)
class OrChoice:
    """Annotation of a field of `Hparams`: instead of a value it may hold a choice, until that is decided.

    The field keeps the type of its value, because methods edit with decided values only.
    """

    choice: type[Choice]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        value = handler(source)
        return core_schema.tagged_union_schema(
            {"value": value, "choice": core_schema.no_info_plain_validator_function(self._read)},
            discriminator=lambda found: "choice" if self._is_choice(found) else "value",
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda found, plain: found.written() if isinstance(found, Choice) else plain(found), schema=value
            ),
        )

    def _is_choice(self, found: Any) -> bool:
        return isinstance(found, Choice) or self.choice.is_written(found)

    def _read(self, found: Any) -> Choice:
        return found if isinstance(found, Choice) else self.choice.read(found)


class Hparams(BaseModel):
    """Base class of hyper-parameters: immutable, and unknown keys are errors.

    A method that overrides what follows gets better estimates of time; nothing else depends on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def passes_per_edit(self) -> float:
        """Forward passes of a prompt through the target model per edit; a forward and a backward pass count as three."""
        return 75.0

    @property
    def steps_per_edit(self) -> float:
        """Successive optimiser steps per edit that no other edit shares; each costs at least the start of its kernels."""
        return 0.0

    def share_of_blocks(self, n_layers: int) -> float:
        """Share of the blocks that these passes run: less than 1 where those below an edited matrix run only once."""
        return 1.0

    def identity(self) -> dict[str, Any]:
        """Values that decide a result, JSON-like: all of them, unless a subclass leaves out where files are."""
        return self.model_dump(mode="json")

    def choices(self) -> dict[str, Choice]:
        """The values that are not decided yet, by field."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Choice)}

    def decided(self, artifacts: Mapping[str, Path]) -> tuple[Self, dict[str, Any]]:
        """These hyper-parameters with every choice decided, and the values that were chosen.

        Args:
            artifacts: folders of the finished artifacts, by field.
        """
        values = {name: choice.value(artifacts[name]) for name, choice in self.choices().items()}
        return (self.model_validate({**self.model_dump(), **values}) if values else self), values
