"""The benchmark that compares certified tokens with those of whole distributions finds equal ones, and would find others."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import exact_tokens
from methods.onceedit.choose import Chooser


@pytest.mark.slow
def test_a_quick_run_compares_every_token(tmp_path):
    exact_tokens.main(["--quick", "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["steps"] >= 32
    assert found["different"] == []
    assert sum(found["outcomes"].values()) == found["steps"]


@pytest.mark.slow
def test_a_token_that_differs_ends_it_with_an_error(monkeypatch):
    decide = Chooser.decide

    def wrong_once(self, *arguments):
        choice = decide(self, *arguments)
        return replace(choice, tokens_B=torch.cat([choice.tokens_B[:-1], choice.tokens_B[-1:] + 1]))

    monkeypatch.setattr(Chooser, "decide", wrong_once)
    with pytest.raises(SystemExit, match="another token than in fp64 after"):
        exact_tokens.main(["--quick"])
