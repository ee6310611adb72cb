"""Searches whose cells are scored by a formula instead of an edit."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from harness import registry
from harness.api import ArtifactSpec, Launcher, Summary
from harness.data import load as loading
from harness.errors import UserError
from harness.plan.plan import Plan
from harness.store.store import Store
from harness.suite import hparams
from harness.tune import Question, Tuning, target, write
from harness.tune.space import Space
from tests.helpers.commands import ROOT, harness_here

BEST_LR = 3e-4


def scores(values, edits):
    """Best at one learning rate; a late layer is better."""
    reliability = math.exp(-(math.log(values["lr"] / BEST_LR) ** 2) / 4)
    return {"reliability": reliability, "generality": values["layer"] / 3, "locality": 0.5}


class Formula(Launcher):
    """Writes the scores of `scores`; fails from the trial `fails_from` on, and is killed at `killed_at`."""

    fails_from = killed_at = math.inf

    def __init__(self):
        self.cells = 0
        self.edits = []

    def run(self, plan, display, *, detach=False):
        for cell in plan.todo():
            if self.cells == self.killed_at:
                raise KeyboardInterrupt
            folder = plan.store.cell(cell.folder)
            if self.cells >= self.fails_from:
                with folder.failing("diverged"):
                    pass
            else:
                with folder.writing() as path:
                    found = {axis: {"score": each} for axis, each in scores(cell.hparams, cell.data.edits).items()}
                    (path / "metrics.json").write_text(json.dumps({"generation": found}))
            self.cells += 1
            self.edits.append(cell.data.edits)
        return Summary((), (), ())


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A search of two hyper-parameters of FT-L, with the values in use in `hparams/`."""
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    space = tmp_path / "space.yaml"
    space.write_text("lr: {log: [1.0e-5, 1.0e-1]}\nlayer: {depth: [0.0, 1.0]}\n")

    def _search(launcher=None, edits=12, **options):
        question = Question("ft-l", "tiny/llama", "counterfact", edits, scale="mini", space=space, **options)
        launcher = launcher or Formula()
        console = Console(file=(tmp_path / "lines.txt").open("a"), width=200)
        return Tuning(question, Store(tmp_path / "results"), lambda suite: launcher, console)

    return _search


def lines(tmp_path):
    return (tmp_path / "lines.txt").read_text().splitlines()


def test_the_search_finds_what_scores_best_and_says_so_line_by_line(search, tmp_path):
    result = search().run(16)
    assert result.trials == 16
    assert result.values["layer"] == 3
    assert BEST_LR / 3 < result.values["lr"] < BEST_LR * 3
    assert result.best.score > 0.7 > result.before.score, "the optimum is 2.5 / 3"
    found = lines(tmp_path)
    assert len(found) == 16
    assert found[0].startswith("1/16  Score 0.")
    assert any("stopped early: Score" in line and "after 4 edits" in line for line in found)
    assert found[-1].endswith(f"[best {result.best.score:.3f}]")


def test_the_first_trial_has_the_values_in_use(search):
    tuning = search()
    result = tuning.run(1)
    assert result.values == {"layer": tuning.current.values["layer"], "lr": tuning.current.values["lr"]}
    assert result.best == result.before


def test_trials_edit_a_third_of_the_records_first_and_only_those_of_the_dev_split(search):
    launcher = Formula()
    tuning = search(launcher, edits=30)
    tuning.run(2)
    assert launcher.edits == [10, 30, 10, 30]
    assert {cell.data.split for cell in tuning._plan({"current": {}}, 30).runnable} == {"dev"}


def test_an_interrupted_search_continues_with_the_trial_it_lost_and_ends_the_same(search, tmp_path):
    whole = search(edits=9)
    expected = whole.run(7)
    values = [trial.user_attrs["values"] for trial in whole.study.trials]

    (tmp_path / "results").rename(tmp_path / "first")
    launcher = Formula()
    launcher.killed_at = 7
    with pytest.raises(KeyboardInterrupt):
        search(launcher, edits=9).run(7)
    again = search(edits=9)
    result = again.run(7)
    assert result == expected
    ended = [trial.user_attrs["values"] for trial in again._ended()]
    assert ended[: len(ended) // 2] == values[: len(ended) // 2]
    assert len(ended) == 7
    assert search(edits=9).run(7) == expected, "nothing is left to do"


def test_a_trial_that_was_lost_while_its_values_were_drawn_has_the_same_values_again(search, monkeypatch):
    def killed(space, trial):
        space._suggest(trial, "lr", space.ranges["lr"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Space, "suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            search().run(1)
    tuning = search()
    assert tuning.run(1).values == tuning._searched


@pytest.mark.parametrize(("axis", "lacking"), [("generality", "rephrases"), ("locality", "locality")])
def test_records_that_cannot_be_scored_are_refused_before_the_first_trial(axis, lacking, search, monkeypatch):
    def load(ref):
        data = loading.load(ref)
        return replace(data, edits=tuple(replace(record, **{lacking: ()}) for record in data.edits))

    monkeypatch.setattr("harness.tune.study.load", load)
    launcher = Formula()
    with pytest.raises(UserError, match=f"the first 4 dev records of counterfact have no questions about {axis}"):
        search(launcher).run(2)
    assert launcher.cells == 0


def test_a_trial_that_fails_says_why_and_the_search_goes_on(search, tmp_path):
    launcher = Formula()
    launcher.fails_from = 4
    result = search(launcher).run(5)
    assert result.trials == 5
    assert [line.split("  ")[1] for line in lines(tmp_path)[2:]] == ["failed: diverged"] * 3


def test_a_model_is_fetched_before_its_study_begins(search, monkeypatch):
    """Only its files identify it: a study that began without them would be refused when it is continued."""
    fetched = []
    monkeypatch.setattr(Plan, "with_models_here", lambda plan: fetched.append(plan.suite.models[0].name) or plan)
    tuning = search(edits=8)
    assert tuning.study.user_attrs["identity"]
    assert fetched == ["tiny/llama"]


def test_a_search_without_any_result_is_one_line(search):
    launcher = Formula()
    launcher.fails_from = 0
    with pytest.raises(UserError, match="none of 2 trials has a result: diverged"):
        search(launcher).run(2)


def test_a_study_with_other_records_is_not_continued(search):
    search().run(1)
    with pytest.raises(
        UserError, match="this study was made with different ranges, records, weights, versions or code"
    ) as error:
        search(edits=15).run(2)
    assert error.value.fix.startswith("rm ")


@pytest.fixture
def own_builder(monkeypatch):
    """FT-L with an artifact of a plug-in, for the layer that it edits; returns how to change the plug-in's code."""

    def artifacts(method, model, data, seed):
        return {
            f"layer.{method.hparams.layer}": ArtifactSpec("net", "setup", {"at": method.hparams.layer}, "own:build")
        }

    def change(text):
        monkeypatch.setattr("harness.api.artifact.source_hash", lambda module: text if module == "own" else "")

    monkeypatch.setattr(registry.find_method("ft-l"), "artifacts", artifacts)
    change("first")
    return change


def test_a_study_is_not_continued_with_other_code_of_its_method(search, monkeypatch):
    for text in ("first", "first"):
        monkeypatch.setattr(registry, "code_of", lambda method, text=text: {"source": text})
        search().run(1)
    monkeypatch.setattr(registry, "code_of", lambda method: {"source": "fixed"})
    with pytest.raises(UserError, match="versions or code"):
        search().run(2)


def test_a_study_is_not_continued_with_other_code_of_an_artifacts_builder(search, own_builder):
    search().run(1)
    own_builder("fixed")
    with pytest.raises(UserError, match="versions or code"):
        search().run(2)


def test_a_study_continues_when_other_values_of_what_it_searches_are_in_use(search, own_builder):
    tuning = search()
    tuning.run(1)
    path = target(tuning.question, tuning.model, None, is_replaced=False)
    path.parent.mkdir(parents=True)
    path.write_text(f"extends: {ROOT}/methods/hparams/ft-l/tiny.yaml\nlayer: {{value: 0, source: me}}\n")
    again = search()
    assert again.current.values["layer"] == 0 != tuning.current.values["layer"]
    assert again.run(2).trials == 2


def test_studies_of_two_backends_are_two(search):
    native, other = search(), search(backend="easyedit")
    assert native.name == "tune-ft-l-tiny_llama-counterfact"
    assert other.name == f"{native.name}-easyedit"
    assert other.database != native.database


def test_trials_of_one_round_are_launched_together(search):
    sizes = []

    class Counting(Formula):
        def run(self, plan, display, *, detach=False):
            sizes.append(len(plan.todo()))
            return super().run(plan, display, detach=detach)

    search(Counting(), edits=8).run(8, parallel=4)
    assert sizes == [4, 4]


def test_the_file_takes_effect_and_names_the_source_of_each_value(search, tmp_path):
    tuning = search()
    result = tuning.run(6)
    path = target(tuning.question, tuning.model, None, is_replaced=False)
    assert str(path) == "hparams/ft-l/tiny_llama.yaml"
    write(result, tuning.question, path)
    found = hparams.resolve("ft-l", "tiny/llama", {})
    assert {key: found.values[key] for key in result.values} == result.values
    assert found.values["steps"] == tuning.current.values["steps"]
    source = found.sources["lr"]
    assert source.startswith("tuned on dev: 12 records of counterfact, 6 trials, Score by generation 0.")
    assert (
        "; python -m harness tune ft-l --model tiny/llama --dataset counterfact --trials 6 --edits 12 --scale mini "
        f"--space {tuning.question.space}; 20" in source
    )
    assert hparams.resolve("ft-l", "tiny/mistral", {}).values == tuning.current.values


def test_an_existing_file_is_replaced_only_on_demand_and_does_not_extend_itself(search, tmp_path):
    tuning = search()
    path = target(tuning.question, tuning.model, None, is_replaced=False)
    write(tuning.run(1), tuning.question, path)
    with pytest.raises(UserError, match=r"tiny_llama\.yaml already exists"):
        target(tuning.question, tuning.model, None, is_replaced=False)
    path = target(tuning.question, tuning.model, None, is_replaced=True)
    write(tuning.run(2), tuning.question, path)
    assert yaml.safe_load(path.read_text())["extends"] == "tiny.yaml"
    assert "--trials 2 " in hparams.resolve("ft-l", "tiny/llama", {}).sources["lr"]


def test_a_file_that_is_replaced_keeps_what_was_not_searched(search, tmp_path):
    own = tmp_path / "hparams/ft-l/tiny_llama.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "extends: tiny.yaml\nlr: {value: 0.5, source: mine}\nsteps: {value: 7, source: counted}\n"
        "variants:\n  long: {steps: {value: 99, source: patience}}\n"
    )
    tuning = search()
    result = tuning.run(2)
    write(result, tuning.question, target(tuning.question, tuning.model, None, is_replaced=True))
    found = hparams.resolve("ft-l", "tiny/llama", {})
    assert found.values == {**tuning.current.values, **result.values}, "what was measured"
    assert (found.values["steps"], found.sources["steps"]) == (7, "counted")
    assert found.sources["lr"].startswith("tuned on dev")
    assert hparams.resolve("ft-l", "tiny/llama", {}, variant="long").values["steps"] == 99


def test_the_users_own_file_is_the_one_to_replace(tmp_path, monkeypatch):
    """Even where the method's own folder is below the working directory: the user's file is the one that is read."""
    monkeypatch.chdir(tmp_path)
    folders = [Path("hparams/ft-l"), tmp_path / "methods/hparams/ft-l"]
    assert hparams.own_file(folders, "tiny/llama") == Path("methods/hparams/ft-l/tiny_llama.yaml")
    folders[0].mkdir(parents=True)
    (folders[0] / "tiny_llama.yaml").write_text("extends: tiny.yaml\n")
    assert hparams.own_file(folders, "tiny/llama") == folders[0] / "tiny_llama.yaml"


def test_a_file_elsewhere_extends_the_file_in_use_wherever_it_is_moved(search, tmp_path, monkeypatch):
    tuning = search()
    result = tuning.run(1)
    for name, extends in (("best.yaml", "tiny.yaml"), ("tiny.yaml", str(ROOT / "methods/hparams/ft-l/tiny.yaml"))):
        write(result, tuning.question, tmp_path / "out" / name)
        assert yaml.safe_load((tmp_path / "out" / name).read_text())["extends"] == extends
        (tmp_path / "hparams/ft-l").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).rename(tmp_path / "hparams/ft-l/tiny_llama.yaml")
        assert hparams.resolve("ft-l", "tiny/llama", {}).values == tuning.current.values
        (tmp_path / "hparams/ft-l/tiny_llama.yaml").unlink()
    own = tmp_path / "hparams/ft-l/llama.yaml"  # for all models of its `model_type`
    own.write_text(f"extends: {ROOT}/methods/hparams/ft-l/tiny.yaml\n")
    write(replace(result, model="my-llama"), tuning.question, tmp_path / "out/best.yaml")
    assert yaml.safe_load((tmp_path / "out/best.yaml").read_text())["extends"] == str(own)
    own = tmp_path / "hparams/ft-l/tiny.yaml"
    own.write_text(f"extends: {ROOT}/methods/hparams/ft-l/tiny.yaml\n")
    write(result, tuning.question, tmp_path / "out/best.yaml")
    assert yaml.safe_load((tmp_path / "out/best.yaml").read_text())["extends"] == str(own)


def test_the_command_searches_and_writes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.run.profiles.load_profile", lambda name, at: Formula())
    (tmp_path / "space.yaml").write_text("lr: {log: [1.0e-5, 1.0e-1]}\n")
    file = tmp_path / "best.yaml"
    command = ["tune", "ft-l", "--model", "tiny/llama", "--trials", 2, "--edits", 5, "--scale", "mini"]
    options = [*command, "--space", tmp_path / "space.yaml", "--store", tmp_path / "results", "--to", file]
    done = harness_here(*options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].startswith("best of 2 trials: Score 0.")
    assert done.stdout.splitlines()[-1] == f"wrote {file}"
    assert yaml.safe_load(file.read_text())["lr"]["source"].startswith(
        "tuned on dev: 5 records of counterfact, 2 trials"
    )
    again = harness_here(*options)
    assert again.returncode == 2
    assert again.stderr.strip().endswith("already exists → --force to replace it, or --to FILE to write another")
