"""Exported results: against the fields that the published schema requires and, where it is at hand, the schema itself."""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.cli import main
from harness.evaluation.probes import AXES
from harness.store.store import Folder
from reports.checklist import checklist, parts_of
from reports.frame import load_suite
from tests.helpers.fake_store import FakeStore

SCHEMAS = "EVERY_EVAL_SCHEMAS"
"""Environment variable: folder with eval.schema.json and instance_level_eval.schema.json."""

REQUIRED = {
    "": "schema_version evaluation_id retrieved_timestamp source_metadata model_info eval_library evaluation_results",
    "source_metadata": "source_type source_organization_name evaluator_relationship",
    "eval_library": "name version",
    "model_info": "name id additional_details",
    "model_info.additional_details": "deployment_type model_availability",
    "evaluation_results": "evaluation_name source_data metric_config score_details",
    "evaluation_results.source_data": "dataset_name source_type",
    "evaluation_results.metric_config": "lower_is_better score_type min_score max_score",
    "evaluation_results.score_details": "score",
    "detailed_evaluation_results": "format file_path",
}
"""Fields that version 0.3.0 requires, by the path of the object."""
REQUIRED_OF_SAMPLES = {
    "": "schema_version evaluation_id model_id evaluation_name sample_id interaction_type input output answer_attribution "
    "evaluation",
    "input": "raw reference",
    "output": "raw",
    "answer_attribution": "turn_idx source extracted_value extraction_method is_terminal",
    "evaluation": "score is_correct",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The store, and the folder of its export; one cell has scores on all axes."""
    root = tmp_path_factory.mktemp("export")
    fake = FakeStore(root / "results")
    fake.write_cell("ft-l", "tiny/llama", "zsre", chances=dict.fromkeys(AXES, 0.5))
    store = fake.write_suite(data=("zsre",), models=("tiny/llama",), methods=("none", "onceedit")).root
    arguments = ["main_table", "--scale", "mini", "--store", str(store), "--to", str(root / "to")]
    assert main(["export-results", *arguments, "--organization", "Lab"]) == 0
    return store, root / "to"


def aggregates(to):
    return {file: json.loads(file.read_text()) for file in sorted(to.rglob("*.json"))}


def samples_of(to, aggregate):
    return (to / aggregate["detailed_evaluation_results"]["file_path"]).read_bytes()


def objects(content, path):
    """All objects at a path, through lists."""
    found = [content]
    for name in filter(None, path.split(".")):
        found = [item for each in found for item in (each[name] if isinstance(each[name], list) else [each[name]])]
    return found


def test_every_required_field_is_there(exported):
    found = aggregates(exported[1])
    assert len(found) == 3
    for aggregate in found.values():
        lines = [json.loads(line) for line in samples_of(exported[1], aggregate).splitlines()]
        for contents, required in (([aggregate], REQUIRED), (lines, REQUIRED_OF_SAMPLES)):
            for path, names in required.items():
                for each in (item for content in contents for item in objects(content, path)):
                    assert set(names.split()) <= each.keys(), path


def test_the_published_schema_accepts_it(exported):
    jsonschema = pytest.importorskip("jsonschema")
    folder = Path(os.environ.get(SCHEMAS, ""))
    if SCHEMAS not in os.environ:
        package = importlib.util.find_spec("every_eval_ever")
        if package is None:
            pytest.skip(f"no published schema: set {SCHEMAS} to its folder, or install every-eval-ever")
        folder = Path(str(package.origin)).parent / "schemas"
    of_file, of_line = (
        jsonschema.Draft7Validator(json.loads((folder / f"{name}.schema.json").read_text()))
        for name in ("eval", "instance_level_eval")
    )
    for aggregate in aggregates(exported[1]).values():
        of_file.validate(aggregate)
        for line in samples_of(exported[1], aggregate).splitlines():
            of_line.validate(json.loads(line))


def test_scores_intervals_and_samples_are_those_of_the_store(exported):
    cells = load_suite(exported[0], "main_table", "mini").cells.set_index(["cell", "protocol"])
    for aggregate in aggregates(exported[1]).values():
        cell = aggregate["evaluation_id"].rpartition("/")[2]
        results = {each["evaluation_result_id"]: each["score_details"] for each in aggregate["evaluation_results"]}
        for protocol in ("teacher_forced", "generation"):
            row = cells.loc[(cell, protocol)]
            for name, column in (("reliability", "rel"), ("locality_unrelated", "loc_unrelated"), ("score", "avg")):
                assert results[f"{protocol}.{name}"]["score"] == pytest.approx(row[column])
            interval = results[f"{protocol}.score"]["uncertainty"]["confidence_interval"]
            assert interval["lower"] <= row["avg"] <= interval["upper"]
            assert row["is_reference"] or interval["lower"] < interval["upper"]
        kept = pd.read_parquet(exported[0] / "cells" / cell / "records.parquet")
        lines = [json.loads(line) for line in samples_of(exported[1], aggregate).splitlines()]
        assert [line["evaluation"]["score"] for line in lines] == kept["score"].tolist()
        assert {line["evaluation_result_id"] for line in lines} <= results.keys()


def test_samples_are_found_and_intact(exported):
    for file, aggregate in aggregates(exported[1]).items():
        details, content = aggregate["detailed_evaluation_results"], samples_of(exported[1], aggregate)
        assert hashlib.sha256(content).hexdigest() == details["checksum"]
        assert content.count(b"\n") == details["total_rows"] > 0
        assert exported[1] / details["file_path"] == file.with_name(f"{file.stem}_samples.jsonl")


def test_the_checklist_names_hardware_seeds_commit_and_licences(exported):
    page = (exported[1] / "checklist-main_table.mini.md").read_text()
    for fact in (
        "0123456789abcdef",
        "AMD EPYC × 1 threads",
        "Seeds 0.",
        "5000 resamples of records",
        "MIT",
        "Apache-2.0",
        "for 3 cells",
        "memory at most 1.0 GiB; with building artifacts: 3.0 GiB",
    ):
        assert fact in page
    details = next(iter(aggregates(exported[1]).values()))["source_metadata"]["additional_details"]
    assert any("for 1 cell (" in text for text in details.values())


def test_a_peak_that_one_cell_does_not_know_is_unknown(fake):
    costs = ({}, {"peak_memory_with_artifacts_bytes": None})
    cells = [fake.write_cell("ft-l", "tiny/llama", "zsre", seed=seed, cost=cost) for seed, cost in enumerate(costs)]
    answers = checklist([parts_of(Folder(cell)) for cell in cells])
    assert "resamples of seeds and records" in answers["Experiment statistical significance"]
    assert "memory at most 1.0 GiB; with building artifacts: unknown" in answers["Experiments compute resources"]


def test_exporting_again_replaces_the_files(exported, tmp_path):
    store, to = exported
    again = shutil.copytree(to, tmp_path / "to")
    assert main(["export-results", "main_table", "--scale", "mini", "--store", str(store), "--to", str(again)]) == 0
    names = [sorted(str(file.relative_to(root)) for file in root.rglob("*")) for root in (to, again)]
    assert names[0] == names[1]


def test_a_suite_that_was_not_run_is_refused(exported, tmp_path, capsys):
    assert main(["export-results", "cost", "--store", str(exported[0]), "--to", str(tmp_path)]) == 2
    assert "suite 'cost' has not been run" in capsys.readouterr().err
