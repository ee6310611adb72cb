"""The benchmarks of EasyEdit: they find what differs, and run from end to end where there is a checkout."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.easyedit_editing import FAITHFUL, THEIRS, speed_ups
from benchmarks.easyedit_own_scores import Scored, if_it_can
from harness.errors import UserError
from methods.easyedit import checkout
from tests.helpers.commands import ROOT, environment


def test_a_value_of_one_side_alone_differs_as_another_value_does():
    same = {("after", "r", "reliability", "0"): 1.0}
    left = {("before", "r", "locality", "0"): [1, 2], ("after", "s", "reliability", "0"): 0.0}
    right = {("before", "r", "locality", "0"): [1, 3], ("after", "t", "reliability", "0"): 0.0}
    assert not Scored(same, dict(same)).differing
    assert set(Scored(same | left, same | right).differing) == {*left, *right}


def test_only_lists_of_different_lengths_are_what_easyedit_cannot_score():
    assert if_it_can(np.equal, [1, 2], [1, 2]).all()
    assert if_it_can(np.equal, [1, 2], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="invalid literal"):
        if_it_can(int, "x")


def test_seconds_are_compared_within_a_round():
    assert speed_ups({THEIRS: [8.0, 100.0], FAITHFUL: [2.0, 10.0]}, FAITHFUL) == [4.0, 10.0]


@pytest.mark.easyedit
def test_a_quick_run_lets_both_code_bases_edit(tmp_path):
    command = [sys.executable, "-m", "benchmarks.easyedit_editing", "--quick", "--weights", "random", "--threads", "1"]
    chosen = ["--models", "tiny/gptj", "--methods", "ft-l", "grace", "--out", str(tmp_path / "results.json")]
    subprocess.run([*command, *chosen], cwd=ROOT, env=environment(), check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["method"] for one in results["editing"]] == ["ft-l", "grace"]
    for one in results["editing"]:
        assert [len(seconds) for seconds in one["seconds"].values()] == [1, 1, 1]
        assert all(value > 0 for seconds in one["seconds"].values() for value in seconds)


@pytest.mark.easyedit
def test_a_quick_run_compares_every_value_in_both_forms(tmp_path):
    try:
        checkout.find()
    except UserError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "benchmarks.easyedit_scores", "--quick", "--models", "tiny/gptj", "--threads", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "results.json")], cwd=ROOT, env=environment(), check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["easyedit"]["easyedit"] == checkout.COMMIT
    for form in ("teacher_forced", "generation"):
        scored = results["scored"]["tiny/gptj"][form]
        assert scored["values"] > 50
        assert scored["differing"] == []
        assert len(scored["ours_s"]) == len(scored["theirs_s"]) == 2
