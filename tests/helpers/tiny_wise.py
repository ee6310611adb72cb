"""Hyper-parameters, lessons and prompts for WISE on three-layer models."""

from harness.records import DataRef, Dataset, EditRecord, Probe
from methods.wise.editor import Wise
from methods.wise.hparams import WiseHparams
from tests.helpers.tiny_edits import FACTS, UNRELATED, requests_of

LAYER = 1
PREFIXES = ("Paris. ", "The mother tongue of Björk. ")
PROBES = [Probe(prompt, answer) for prompt, answer in UNRELATED]
REF = DataRef("tiny", "synthetic", 2, train=3, sha256="0")
DATA = Dataset(
    REF,
    (EditRecord("e", "France", "", "Paris", ""),),
    (
        EditRecord("a", "A", "", "x", "", locality=(Probe("a one", "1"), Probe("a two", "2"))),
        EditRecord("b", "B", "", "x", ""),
        EditRecord("c", "C", "", "x", "", locality=(Probe("c one", "1"), Probe("France", "2"), Probe("a one", "3"))),
    ),
    (),
)


def hparams_with(**changes):
    values = {
        "layer": LAYER,
        "contexts": 2,
        "steps": 4,
        "lr": 0.1,
        "weight_decay": 0.01,
        "decay": "masked",
        "norm_constraint": 1.0,
        "mask_ratio": 0.3,
        "alpha": 0.2,
        "beta": 2.0,
        "gamma": 1.0,
        "stop_change": 0.0,
        "stop_loss": 0.0,
        "save_freq": 2,
        "merge_freq": 4,
        "density": 0.53,
        "memory": "retrieve",
        "act_ratio": 0.88,
        "reads": "prompt",
        "parallel": 3,
        "implementation": "corrected",
    }
    return WiseHparams(**values | changes)


def lessons_of(model, count=None, **changes):
    editor = Wise(hparams_with(**changes))
    return editor._lessons(model, requests_of(FACTS[:count]), PROBES, PREFIXES)
