"""Artifacts: costly results that edits need or share, described by what they contain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from harness.code import source_hash
from harness.identity import digest


@dataclass(frozen=True)
class ArtifactSpec:
    """A costly prerequisite of an edit, or one shared by several cells; built once and stored under its content address.

    Attributes:
        name: type of the artifact, such as `plugin-edit` or `tiny-model`; also the folder it is stored in.
        kind: `model` (a stand-in for a pretrained model, whose cost is never charged), `setup` (preparation before any
            edit, such as statistics) or `edit` (the edit itself, shared by several target models).
        identity: everything that determines the content, JSON-like, without paths and devices.
        builder: `module:function`, called as `function(spec, context, folder)` to write the files.
        inputs: further inputs of the builder that are not part of the identity (references to datasets and models).
        needs: dependencies by role, built first.
        passes: forward passes of a prompt through the models in `inputs` that building takes (a forward and a backward
            pass count as three), for estimates of time only; None if unknown.
        flops: floating-point operations beyond these passes; for estimates only.
        memory: estimated bytes that building takes in addition to the models in `inputs`, by what takes them; for estimates
            only.
    """

    name: str
    kind: Literal["model", "setup", "edit"]
    identity: Mapping[str, Any]
    builder: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, "ArtifactSpec"] = field(default_factory=dict)
    passes: float | None = None
    flops: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Content address: hash of `content` and the keys of all dependencies."""
        needs = {role: need.key for role, need in self.needs.items()}
        return digest({**self.content, "needs": needs}, 16)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The name, the identity and, if the builder is from outside this project, the hash of its code."""
        code = source_hash(self.builder.partition(":")[0])
        return {"name": self.name, "identity": self.identity, **({"code": code} if code else {})}

    def closure(self) -> Iterator["ArtifactSpec"]:
        """Yield all dependencies and then the artifact itself, in build order; shared dependencies are repeated."""
        for need in self.needs.values():
            yield from need.closure()
        yield self

    def description(self) -> dict[str, Any]:
        """Content of artifact.json."""
        needs = {role: need.key for role, need in self.needs.items()}
        return {**self.content, "kind": self.kind, "key": self.key, "needs": needs}
