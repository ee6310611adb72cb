"""Launch profiles: where they are found, which launcher reads them, and one line for each mistake."""

import re

import pytest

from harness import registry
from harness.errors import UserError
from harness.run.local import LocalLauncher
from harness.run.profiles import described, load_profile, profile_names
from harness.suite import load_suite


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition: gpu\n", "site.yaml:1: missing key 'launcher' in the file"),
        ("launcher: slum\n", "site.yaml:1: launcher: 'slum' is not one of local, slurm (did you mean 'slurm'?)"),
        ("launcher: local\npartition: gpu\n", "site.yaml:2: unknown key 'partition' in the file"),
        ("launcher: local\nprocesses: 0\n", "site.yaml:2: processes: input should be greater than or equal to 1"),
        ("[launcher]\n", "site.yaml:1: expected keys with values, found a list"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, text, message):
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_told_the_nearest_and_all_there_are():
    with pytest.raises(
        UserError, match=re.escape("unknown launch profile 'a10' (did you mean 'a100'?); there are a100,")
    ):
        load_profile("a10")


@pytest.mark.parametrize("name", ["a10", "./nowhere.yaml"])
def test_an_unknown_name_is_reported_where_a_suite_has_written_it(tmp_path, name):
    file = tmp_path / "suite.yaml"
    lines = ["name: tiny", "models: [llama2-7b]", "methods: [none]", "datasets: [{name: zsre, edits: 4}]"]
    file.write_text("\n".join([*lines, f"launch: {name}", ""]))
    suite = load_suite(file)
    with pytest.raises(UserError, match=re.escape(f"suite.yaml:5: unknown launch profile '{name}'")):
        load_profile(suite.launch, suite.launch_at)


def test_every_launcher_has_profiles_of_its_own_and_all_are_sound():
    loaded = {name: type(load_profile(name)) for name in profile_names()}
    assert loaded == {"a100": registry.launchers.get("slurm"), "cores": LocalLauncher, "local": LocalLauncher}


def test_a_profile_is_described_by_the_comment_on_its_first_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text("launcher: local\n")

    assert described("local") == "This machine, without a scheduler."
    assert described("mine") == ""


def test_a_profile_in_the_working_directory_goes_before_one_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    for name in ("local", "mine"):
        (tmp_path / "profiles" / f"{name}.yaml").write_text("launcher: local\nprocesses: 3\n")
    assert profile_names() == ["a100", "cores", "local", "mine"]
    assert [load_profile(name).profile.processes for name in ("local", "mine")] == [3, 3]
