"""Content-addressed artifacts: keys, dependencies, costs and tampering."""

import dataclasses
import json
import sys

import pytest
from rich.console import Console

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.plan.job import job_of
from harness.run.context import RunContext
from harness.run.cost import device_class
from harness.run.progress import Display
from harness.run.runner import Runner
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store

BUILT: list[str] = []


def build(spec, context, folder):
    """Builder for these tests: write the identity, or fail on request."""
    BUILT.append(spec.name)
    if spec.inputs.get("fails"):
        (folder / "half").write_text("half")
        raise RuntimeError("the builder broke")
    with context.clock.phase("edit" if spec.kind == "edit" else "setup"):
        (folder / "content").write_text(json.dumps(dict(spec.identity)))


def spec_of(name="plugin", kind="edit", identity=None, **changes):
    return ArtifactSpec(name, kind, identity or {"lr": 0.1}, f"{__name__}:build", **changes)


@pytest.fixture
def cache(tmp_path):
    BUILT.clear()
    return ArtifactCache(Store(tmp_path))


@pytest.fixture
def run(cache, tmp_path):
    """Build an artifact as the runner does."""
    runner = Runner(Store(tmp_path), RunContext(cache, "cpu", Display(Console(quiet=True))))
    return lambda spec: runner.run(job_of(spec, seed=0, device="cpu"))


@pytest.fixture
def made(cache, run):
    """Build an artifact, assert success and return its folder."""

    def make(spec):
        assert run(spec).reason is None
        return cache.folder(spec)

    return make


def test_the_key_depends_only_on_what_determines_the_content():
    spec, other = spec_of(), spec_of("model", "model", {"seed": 0})
    same = [
        dataclasses.replace(spec, inputs={"path": "/anywhere"}),
        dataclasses.replace(spec, builder=f"{__name__}:build_again"),
        dataclasses.replace(spec, kind="setup"),
    ]
    different = [
        spec_of(identity={"lr": 0.2}),
        spec_of(name="other"),
        spec_of(needs={"model": other}),
        spec_of(needs={"model": spec_of("model", "model", {"seed": 1})}),
        spec_of(needs={"plugin": other}),
        dataclasses.replace(spec, builder="harness.evaluation.unedited:build"),
    ]
    assert {each.key for each in same} == {spec.key}
    assert len({spec.key, *(each.key for each in different)}) == 1 + len(different)


def test_a_path_in_an_identity_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="no canonical form"):
        _ = spec_of(identity={"path": tmp_path}).key


def test_a_built_artifact_is_found_again_and_contains_its_identity(cache, made):
    spec = spec_of(needs={"model": (model := spec_of("model", "model", {"seed": 0}))})
    assert not cache.is_built(spec)
    with pytest.raises(FileNotFoundError, match="is not built"):
        cache.folder(spec)
    made(model)
    folder = made(spec)
    assert cache.is_built(spec)
    assert cache.folder(spec) == folder
    kept = json.loads((folder / "artifact.json").read_text())
    assert kept.pop("code"), "because this builder is no part of the harness"
    assert kept == {
        "name": "plugin",
        "kind": "edit",
        "key": spec.key,
        "identity": {"lr": 0.1},
        "needs": {"model": model.key},
    }


def test_a_failed_build_leaves_its_reason_and_no_partial_output(cache, run, tmp_path):
    spec = spec_of(inputs={"fails": True})
    assert "the builder broke" in run(spec).reason
    assert not cache.is_built(spec)
    (folder,) = (tmp_path / "artifacts" / "plugin").iterdir()
    assert {path.name for path in folder.iterdir()} == {"FAILED", "artifact.json", "provenance.json", "log.txt"}


def test_content_that_does_not_match_its_key_is_refused_with_the_command_that_fixes_it(cache, made):
    spec = spec_of()
    file = made(spec) / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"identity": {"lr": 0.3}}))
    with pytest.raises(UserError, match="its content does not match its key → rm -r ") as refused:
        cache.folder(spec)
    assert str(file.parent) in str(refused.value)


def test_dependencies_come_first_at_any_depth():
    model = spec_of("model", "model", {"seed": 0})
    middle = spec_of("middle", "setup", needs={"model": model})
    top = spec_of("top", needs={"middle": middle, "model": model})
    assert [each.name for each in top.closure()] == ["model", "middle", "model", "top"]


def test_shared_dependencies_are_charged_once_and_stand_in_models_never(cache, made):
    model = spec_of("model", "model", {"seed": 0})
    shared = spec_of("shared", "setup", needs={"model": model})
    one, two = (spec_of(name, identity={"n": name}, needs={"shared": shared}) for name in ("one", "two"))
    seconds = {"model": {"setup": 100.0}, "shared": {"setup": 4.0}, "one": {"edit": 1.0}, "two": {"edit": 2.0}}
    for spec in (model, shared, one, two):
        (made(spec) / "cost.json").write_text(json.dumps({"phases_s": seconds[spec.name]}))
    assert cache.phases_s([one]) == {"setup": 4.0, "edit": 1.0}
    assert cache.phases_s([one, two]) == {"setup": 4.0, "edit": 3.0}
    assert cache.phases_s([]) == {}


def test_what_depends_on_an_edit_is_not_reusable_for_another(cache, made):
    edit = spec_of("plugin", "edit")
    target, state = spec_of("target", "setup"), spec_of("state", "setup", needs={"edit": edit})
    seconds = {"plugin": {"edit": 1.0}, "target": {"attach": 4.0}, "state": {"attach": 8.0}}
    for spec in (edit, target, state):
        (made(spec) / "cost.json").write_text(json.dumps({"phases_s": seconds[spec.name]}))
    assert cache.phases_s([edit, target, state]) == {"edit": 1.0, "attach": 12.0}
    assert cache.reusable_phases_s([edit, target, state]) == {"attach": 4.0}


def test_the_devices_of_a_phase_are_those_that_its_artifacts_were_built_on(cache, made):
    shared = spec_of("shared", "setup")
    one, two = (spec_of(name, identity={"n": name}, needs={"shared": shared}) for name in ("one", "two"))
    costs = {"shared": {"setup": 4.0}, "one": {"edit": 1.0}, "two": {"edit": 2.0}}
    built_on = {"shared": {}, "one": {"device_class": "cuda: A100"}, "two": {"device_class": "cuda: H100"}}
    for spec in (shared, one, two):
        (made(spec) / "cost.json").write_text(json.dumps({"phases_s": costs[spec.name], **built_on[spec.name]}))
    found = cache.device_classes([one, two], "cpu: here")
    assert found == {"setup": {"cpu: here"}, "edit": {"cuda: A100", "cuda: H100"}}, (
        "where none is recorded, the cell's own"
    )


def test_the_peak_is_the_highest_of_a_cell_and_its_artifacts_and_unknown_if_one_is(cache, made):
    shared = spec_of("shared", "setup", needs={"model": spec_of("model", "model", {"seed": 0})})
    top = spec_of("top", needs={"shared": shared})
    for spec, peak in (
        (shared.needs["model"], {}),
        (shared, {"peak_memory_bytes": 50}),
        (top, {"peak_memory_bytes": 9}),
    ):
        (made(spec) / "cost.json").write_text(json.dumps({"phases_s": {}, **peak}))
    assert cache.peak_memory_bytes([top], own=10) == 50
    assert cache.peak_memory_bytes([top], own=70) == 70
    assert cache.peak_memory_bytes([], own=70) == 70
    (cache.folder(shared) / "cost.json").write_text(json.dumps({"phases_s": {}}))
    assert cache.peak_memory_bytes([top], own=70) is None, "it was built before this was recorded"


def hold(spec, context, folder):
    """Take 100 MiB for a moment."""
    assert len(bytearray(100 << 20))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget the peak of a process")
def test_the_peak_of_building_is_that_of_the_build_alone(made):
    folders = [made(ArtifactSpec(name, "setup", {}, f"{__name__}:{name}")) for name in ("hold", "build")]
    large, small = (json.loads((folder / "cost.json").read_text())["peak_memory_bytes"] for folder in folders)
    assert large > small + (80 << 20)


def test_the_cost_of_building_is_kept_by_phase(made):
    cost = json.loads((made(spec_of()) / "cost.json").read_text())
    assert cost["device"] == "cpu"
    assert cost["device_class"] == device_class("cpu")
    assert cost["phases_s"].keys() == {"edit"}
    assert cost["phases_s"]["edit"] > 0
