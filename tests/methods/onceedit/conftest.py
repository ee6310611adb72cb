"""The tiny data set and the plug-in edited on it, built once per session."""

from pathlib import Path

import pytest
import torch

from harness.models.catalogue import ModelRef
from harness.records import DataRef, Dataset, EditRecord, Probe
from methods.onceedit.edit_stage import build
from methods.onceedit.editor import edit_artifact
from methods.onceedit.plugin import EditedPlugin
from tests.helpers.tiny_onceedit import EDITS, UNRELATED, FakeContext, hparams_with


@pytest.fixture(scope="session")
def data():
    edits = tuple(
        EditRecord(str(n), prompt, "", target, "", rephrases=(f"rephrase {n}",), locality=(Probe(f"probe {n}", "x"),))
        for n, (prompt, target) in enumerate(EDITS)
    )
    train = tuple(
        EditRecord(f"t{n}", prompt, "", "x", "", locality=(Probe(neighbour, "x"),))
        for n, (prompt, neighbour) in enumerate(UNRELATED)
    )
    unrelated = (EditRecord("u", "a prompt that is kept from methods", "", "x", ""),)
    return Dataset(DataRef("tiny", "synthetic", 4, train=4, unrelated=1, sha256="0"), edits, train, unrelated)


@pytest.fixture
def context(data):
    return FakeContext(data)


@pytest.fixture(scope="session")
def plugin_spec(data):
    return edit_artifact(ModelRef("tinyllama-1.1b", "pretrained"), data.ref, hparams_with(), seed=0)


@pytest.fixture(scope="session")
def plugin_folder(data, plugin_spec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    build(plugin_spec, FakeContext(data), folder)
    return folder


@pytest.fixture(scope="session")
def plugin(plugin_folder):
    return EditedPlugin.load(plugin_folder, "cpu")


@pytest.fixture(scope="session")
def fp64_plugin(plugin_folder):
    loaded = EditedPlugin.load(plugin_folder, "cpu")
    loaded.model.double()
    return loaded


@pytest.fixture(scope="session")
def requests(data):
    return [record.request() for record in data.edits]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
