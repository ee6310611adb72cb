"""Where a model's files come from: folders, GGUF files, packages, the hub."""

import dataclasses
import shutil

import pytest
import torch
import yaml

from harness.errors import UnavailableError, UserError
from harness.models import packages, sources
from harness.models.catalogue import CATALOGUE, CatalogueEntry, download_note, reference
from harness.models.loading import load
from harness.suite import load_suite
from tests.helpers.commands import harness_here
from tests.helpers.tiny_gguf import FFN, HEADS, HIDDEN, LAYERS, VOCAB, write_gguf


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "two-blocks.gguf")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A catalogue entry whose weights come in the package `two-blocks`, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = dataclasses.replace(
        CATALOGUE["smollm2-135m"].spec, hidden=HIDDEN, ffn=FFN, n_layers=LAYERS, n_heads=HEADS, n_kv_heads=HEADS,
        vocab=VOCAB, tied=False, settings={},
    )  # fmt: skip
    entry = CatalogueEntry("two-blocks", "Two blocks", "package:two-blocks", spec)
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    return entry


@pytest.fixture
def published(small, monkeypatch, original):
    """The package can be fetched."""

    def fetch(source):
        folder = packages._folder(source.removeprefix(packages.PREFIX))
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(original, folder / original.name)

    monkeypatch.setattr(packages, "fetch", fetch)
    return small


def test_a_package_is_fetched_and_converted_once_and_then_identified_by_its_files(published, original):
    before = reference("two-blocks")
    assert before.is_to_download
    assert download_note(before) == "package:two-blocks is not on this machine (0.0 GB to download and convert)"
    assert sources.local("package:two-blocks") is None
    folder = sources.obtain("package:two-blocks")
    assert sources.local("package:two-blocks") == sources.obtain("package:two-blocks") == folder
    after = reference("two-blocks")
    assert (after.is_to_download, after.revision, len(after.sha256)) == (False, "", 64)
    assert download_note(after) is None
    assert reference("two-blocks", source=str(folder)).identity() == after.identity(), "the same files in a folder"
    assert sources.obtain(str(original)) == folder, "the same file without its package"


def test_a_model_from_a_package_loads_and_answers_as_its_folder(published):
    folder = sources.obtain("package:two-blocks")
    ids = torch.tensor([[5, 6, 7, 8]])
    packed = load(reference("two-blocks"), "cpu").model(ids).logits
    assert torch.equal(packed, load(reference("two-blocks", source=str(folder)), "cpu").model(ids).logits)


def test_a_suite_names_a_file_or_a_package_as_the_path_of_a_model(small, original, tmp_path):
    for path in ("package:two-blocks", str(original)):
        suite = {
            "name": "packed",
            "models": [{"name": "two-blocks", "path": path}],
            "methods": ["none"],
            "datasets": [{"name": "zsre", "edits": 1}],
        }
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
        assert load_suite(tmp_path / "suite.yaml").models[0].source == path


def test_a_model_under_terms_of_use_is_downloaded_by_a_command_of_its_own_and_by_no_run(published, monkeypatch):
    entry = dataclasses.replace(published, terms="https://example.org/terms")
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    with pytest.raises(UnavailableError) as caught:
        reference("two-blocks")
    assert str(caught.value) == (
        "model 'two-blocks' is not on this machine: it comes under terms of use (https://example.org/terms), which its download "
        "accepts → python -m harness models fetch two-blocks"
    )
    done = harness_here("models", "fetch", "two-blocks")
    said = (
        f"Two blocks comes under terms of use: https://example.org/terms\ntwo-blocks: {sources.local(entry.hub_id)}\n"
    )
    assert (done.returncode, done.stdout) == (0, said)
    assert not reference("two-blocks").is_to_download


def test_a_model_that_is_trained_on_the_spot_cannot_be_fetched():
    done = harness_here("models", "fetch", "tiny/llama")
    assert (done.returncode, done.stderr) == (
        2,
        "harness: model 'tiny/llama' is trained on the spot and cannot be downloaded → python -m harness list models\n",
    )


def test_a_missing_file_and_a_revision_of_a_package_are_one_line(small, tmp_path):
    with pytest.raises(UserError, match=r"gone\.gguf: no such file"):
        reference("two-blocks", source=str(tmp_path / "gone.gguf"))
    with pytest.raises(UserError, match="'package:two-blocks' is not on the hub and has no revision 'v2'"):
        reference("two-blocks", revision="v2")
