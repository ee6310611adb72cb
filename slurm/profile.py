"""The launch profile of a SLURM cluster: the sbatch parameters, and the resource classes that jobs are sorted into."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.identity import digest
from harness.plan.estimate import Resources
from harness.run.profiles import Form, LaunchProfile

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Flag = Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]

TAKEN = {
    "array",
    "cpus-per-task",
    "dependency",
    "error",
    "job-name",
    "mem",
    "open-mode",
    "output",
    "parsable",
    "signal",
}
TAKEN |= {"test-only", "time", "wait", "wrap"}
"""Parameters of sbatch without which a launch would not find its jobs again, or would not know what they are given."""


class ResourceClass(Form):
    """Resources of one job. A job that needs more gets the next class."""

    name: Name
    mem_gb: Count = Field(description="memory of the node (not of the GPU), in GiB")
    time_min: Count = Field(description="wall-clock minutes")
    gpu_gb: Count | None = Field(None, description="memory of its GPU, in GiB; default: whatever is needed")
    gres: str | None = Field(None, description="instead of the profile's, as sbatch takes it: `gpu:a100:2`")
    cpus_per_task: Count | None = Field(None, description="instead of the profile's")

    def holds(self, needed: Resources) -> bool:
        """Whether a job of this class has the memory, on the node and on the GPU, and the time."""
        fits_gpu = self.gpu_gb is None or needed.gpu_bytes <= self.gpu_gb * 2**30
        return fits_gpu and needed.memory_bytes <= self.mem_gb * 2**30 and needed.seconds <= self.time_min * 60


class SlurmProfile(LaunchProfile):
    """A SLURM cluster with a file system that all its nodes share. Null values are left to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = Field(None, description="as sbatch takes it: `gpu:a100:1`")
    cpus_per_task: Count = 1
    mem_gb: Count | None = Field(None, description="with time_min: the only resource class")
    time_min: Count | None = Field(None, description="with mem_gb: the only resource class")
    classes: list[ResourceClass] = Field(default_factory=list, description="the smallest first")
    array_parallelism: Count = Field(16, description="jobs of an array that run at the same time")
    packing: Count = Field(1, description="maximum number of cells in a job; they all load the same model")
    signal_delay_s: Annotated[int, Field(ge=0)] = Field(120, description="between the warning signal and the end")
    setup: list[str] = Field(default_factory=list, description="shell lines in front of the job's command")
    python: str | None = Field(None, description="interpreter on the node; default: the one that submits")
    max_array_size: Count | None = Field(None, description="jobs of an array; default: what the controller says")
    poll_s: Count = Field(10, description="seconds between two checks of the queue and the disk")
    settle_s: Annotated[int, Field(ge=0)] = Field(
        30, description="seconds until what one node has written is visible to the others"
    )
    additional: dict[Flag, str | int | bool] = Field(
        default_factory=dict, description="further parameters of sbatch, without dashes: `exclude: node[1-3]`"
    )

    @field_validator("additional")
    @classmethod
    def _what_a_launch_says_itself_is_not_said_otherwise(
        cls, additional: dict[str, str | int | bool]
    ) -> dict[str, str | int | bool]:
        if taken := sorted(TAKEN & additional.keys()):
            raise ValueError(f"'{taken[0]}' is set by the launch itself, or by another key of the profile")
        return additional

    @model_validator(mode="after")
    def _resources_are_said_once(self) -> Self:
        alone = (self.mem_gb, self.time_min)
        if self.classes and alone != (None, None):
            raise ValueError("mem_gb and time_min are those of the classes where there are any; leave them out here")
        if not self.classes and None in alone:
            raise ValueError("mem_gb and time_min are both needed where there are no classes")
        names = [entry.name for entry in self.classes]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two classes are called '{repeated}'")
        for smaller, larger in zip(self.classes, self.classes[1:], strict=False):
            if larger.mem_gb < smaller.mem_gb or larger.time_min < smaller.time_min:
                raise ValueError(
                    f"class '{larger.name}' is smaller than '{smaller.name}' before it; the smallest is first"
                )
        return self

    @property
    def resources(self) -> Sequence[ResourceClass]:
        """The classes in their order, with gres and CPUs filled in; one called `only` where the profile names none."""
        if self.mem_gb is not None and self.time_min is not None:
            plain = [ResourceClass(name="only", mem_gb=self.mem_gb, time_min=self.time_min)]
        else:
            plain = self.classes
        return [
            entry.model_copy(
                update={
                    "gres": entry.gres if entry.gres is not None else self.gres,
                    "cpus_per_task": entry.cpus_per_task or self.cpus_per_task,
                }
            )
            for entry in plain
        ]

    def record(self) -> dict[str, Any]:
        """The record by which another driver recognises the profile of a launch; setup lines, which may hold secrets, as a hash."""
        return {**self.model_dump(mode="json"), "setup": f"sha256:{digest(self.setup)}" if self.setup else ""}

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
        """Device of the cells: as the suite says, else a GPU if this profile requests one."""
        if wanted != "auto":
            return wanted
        by_gres = any("gpu" in (each.gres or "") for each in self.resources)
        return "cuda" if by_gres or any(flag.startswith("gpus") for flag in self.additional) else "cpu"
