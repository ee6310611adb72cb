"""Content-addressed artifacts: keys, needs, costs, and what was tampered with."""

import dataclasses
import json

import pytest

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.run.cost import PhaseClock
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store

BUILT: list[str] = []


def build(spec, context, folder):
    """The builder of these tests: writes its inputs, and fails where it is told to."""
    BUILT.append(spec.name)
    if spec.inputs.get("fails"):
        (folder / "half").write_text("half")
        raise RuntimeError("the builder broke")
    with context.phase("edit" if spec.kind == "edit" else "setup"):
        (folder / "content").write_text(json.dumps(dict(spec.identity)))


def spec_of(name="plugin", kind="edit", identity=None, **changes):
    return ArtifactSpec(name, kind, identity or {"lr": 0.1}, "test_artifacts:build", **changes)


@pytest.fixture
def cache(tmp_path):
    BUILT.clear()
    return ArtifactCache(Store(tmp_path))


def made(cache, spec):
    clock = PhaseClock("cpu")
    return cache.build(spec, clock, clock)


def test_the_key_is_what_decides_the_content_and_nothing_else():
    spec, other = spec_of(), spec_of("model", "model", {"seed": 0})
    same = [
        dataclasses.replace(spec, inputs={"path": "/anywhere"}),
        dataclasses.replace(spec, builder="elsewhere:build"),
        dataclasses.replace(spec, kind="setup"),
    ]
    different = [
        spec_of(identity={"lr": 0.2}),
        spec_of(name="other"),
        spec_of(needs={"model": other}),
        spec_of(needs={"model": spec_of("model", "model", {"seed": 1})}),
        spec_of(needs={"plugin": other}),
    ]
    assert {each.key for each in same} == {spec.key}
    assert len({spec.key, *(each.key for each in different)}) == 1 + len(different)


def test_a_path_in_an_identity_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="no canonical form"):
        _ = spec_of(identity={"path": tmp_path}).key


def test_what_is_built_is_found_again_and_holds_its_identity(cache):
    spec = spec_of(needs={"model": (model := spec_of("model", "model", {"seed": 0}))})
    assert not cache.is_built(spec)
    with pytest.raises(FileNotFoundError, match="is not built"):
        cache.folder(spec)
    made(cache, model)
    folder = made(cache, spec)
    assert cache.is_built(spec)
    assert cache.folder(spec) == folder
    kept = json.loads((folder / "artifact.json").read_text())
    assert kept == {
        "name": "plugin",
        "kind": "edit",
        "key": spec.key,
        "identity": {"lr": 0.1},
        "needs": {"model": model.key},
    }


def test_a_builder_that_breaks_leaves_nothing_behind(cache, tmp_path):
    spec = spec_of(inputs={"fails": True})
    with pytest.raises(RuntimeError, match="the builder broke"):
        made(cache, spec)
    assert not cache.is_built(spec)
    assert list((tmp_path / "artifacts" / "plugin").iterdir()) == []


def test_content_that_does_not_match_its_key_is_refused_with_the_command_that_mends_it(cache):
    spec = spec_of()
    file = made(cache, spec) / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"identity": {"lr": 0.3}}))
    with pytest.raises(UserError, match="its content does not match its key → rm -r ") as refused:
        cache.folder(spec)
    assert str(file.parent) in str(refused.value)


def test_needs_come_first_however_deep():
    model = spec_of("model", "model", {"seed": 0})
    middle = spec_of("middle", "setup", needs={"model": model})
    top = spec_of("top", needs={"middle": middle, "model": model})
    assert [each.name for each in top.closure()] == ["model", "middle", "model", "top"]


def test_shared_needs_are_charged_once_and_stand_in_models_never(cache, tmp_path):
    model = spec_of("model", "model", {"seed": 0})
    shared = spec_of("shared", "setup", needs={"model": model})
    one, two = (spec_of(name, identity={"n": name}, needs={"shared": shared}) for name in ("one", "two"))
    seconds = {"model": {"setup": 100.0}, "shared": {"setup": 4.0}, "one": {"edit": 1.0}, "two": {"edit": 2.0}}
    for spec in (model, shared, one, two):
        (made(cache, spec) / "cost.json").write_text(json.dumps({"phases_s": seconds[spec.name]}))
    assert cache.phases_s([one]) == {"setup": 4.0, "edit": 1.0}
    assert cache.phases_s([one, two]) == {"setup": 4.0, "edit": 3.0}
    assert cache.phases_s([]) == {}


def test_the_cost_of_building_is_kept_by_phase(cache):
    cost = json.loads((made(cache, spec_of()) / "cost.json").read_text())
    assert cost["device"] == "cpu"
    assert cost["phases_s"].keys() == {"edit"}
    assert cost["phases_s"]["edit"] > 0
