"""The dataset of docs/add-a-dataset.md, extracted from the page: one external file adds it with its format."""

import json
import os
import subprocess
import sys

import pytest

from harness import registry
from harness.commands import PLUGINS
from harness.data.load import load, resolve
from harness.data.reading import Flaw, read
from harness.data.show import describe
from harness.errors import UserError
from harness.records import Probe
from harness.suite import load_suite
from tests.data.rows import write
from tests.docs import pages
from tests.helpers.commands import ROOT

PAGE = "add-a-dataset.md"
ROWS = json.loads(pages.files(PAGE)["data/coaches.json"])

LOOK = """
import json, sys
from harness.data.load import load, resolve
from harness.suite import load_suite
suite = load_suite("try_coaches.yaml", scale="mini", data="data")
data = load(resolve("coaches", "data", 2, split="all", train=2, unrelated=1))
print(json.dumps([suite.datasets[0].name, [record.target_new for record in data.edits], len(data.train)]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory in which the page's instructions were followed."""
    monkeypatch.chdir(pages.write(PAGE, tmp_path))
    return tmp_path


@pytest.fixture
def coaches(folder, monkeypatch):
    """The same working directory with the plug-in loaded."""
    monkeypatch.setenv(PLUGINS, str(folder / "coaches.py"))
    registry.load_plugins()
    yield folder / "data"
    registry.datasets.discard("coaches")
    registry.formats.discard("coaches")
    sys.modules.pop("coaches")
    registry._import_plugin.cache_clear()


def test_its_records_are_split_like_those_of_any_dataset(coaches):
    data = load(resolve("coaches", str(coaches), 2, split="all", train=2, unrelated=1))

    assert [record.target_new for record in data.edits] == ["Ben Okoro", "Eva Stone"]
    assert data.edits[0].locality == (Probe("The coach of Southbridge FC is", "Cleo Marsh"),)
    assert (len(data.train), len(data.unrelated)) == (2, 1)


def test_its_files_are_listed_next_to_those_of_other_datasets(coaches):
    assert [(row.dataset, row.format, row.rows) for row in describe(str(coaches))] == [("coaches", "Coaches (JSON)", 6)]
    assert list(registry.datasets)[-2:] == ["facts", "coaches"]


def test_a_suite_can_use_it(coaches):
    suite = load_suite("try_coaches.yaml", scale="mini", data="data")

    assert [(entry.name, entry.source, entry.edits) for entry in suite.datasets] == [("coaches", "data", 2)]


def test_it_is_available_once_the_environment_names_its_file(folder):
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=os.environ | {PLUGINS: "coaches.py", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert json.loads(done.stdout) == ["coaches", ["Ben Okoro", "Eva Stone"], 2]


def test_without_its_file_the_name_is_unknown(folder):
    with pytest.raises(UserError, match=r"try_coaches\.yaml:4: unknown dataset 'coaches'"):
        load_suite("try_coaches.yaml")


def test_a_record_with_a_wrong_field_is_left_out(coaches):
    write(coaches / "coaches.json", [*ROWS, {"club": "Elsewhere", "new_coach": 3}])

    assert read(coaches / "coaches.json").flaws == (Flaw(7, "field 'coach' is missing"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "synthetic"}, "dataset 'coaches' has no synthetic records"),
        ({"template": "paper"}, "the paper has no prompt template for dataset 'coaches'"),
    ],
)
def test_a_missing_feature_is_reported_in_one_line(coaches, options, message):
    with pytest.raises(UserError, match=message):
        resolve("coaches", **{"source": str(coaches), "edits": 1, **options})


def test_its_files_may_have_one_record_per_line(coaches):
    path = coaches / "coaches.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))

    assert read(path).records == read(coaches / "coaches.json").records


def test_a_dataset_of_the_same_name_is_refused(coaches):
    from harness.data.catalogue import register_dataset

    with pytest.raises(ValueError, match="two datasets are called 'zsre'"):
        register_dataset(registry.datasets.get("zsre"))
