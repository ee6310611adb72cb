"""From a store to frames."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from reports.common import protocol_title
from reports.frame import load_suite


def load(fake):
    return load_suite(fake.root, "main_table", "mini")


def test_there_is_one_row_per_finished_cell_and_protocol(fake):
    frame = load(fake.write_suite())
    assert len(frame.cells) == 3 * 3 * 2 * 2
    assert frame.missing.empty
    row = frame.cells.iloc[0]
    metrics = json.loads((fake.root / "cells" / row["cell"] / "metrics.json").read_text())[row["protocol"]]
    assert row["rel"] == metrics["reliability"]["score"]
    assert row["loc_unrelated_exact"] == metrics["locality_unrelated"]["exact"]
    assert row["avg"] == pytest.approx(
        np.mean([metrics[a]["score"] for a in ("reliability", "generality", "locality")])
    )


def test_records_are_means_over_their_probes(fake):
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    probes = pd.read_parquet(folder / "records.parquet")
    is_wanted = (probes["axis"] == "locality") & (probes["record_id"] == "r7") & (probes["protocol"] == "generation")
    records = load(fake).records
    one = records[(records["axis"] == "loc") & (records["record_id"] == "r7") & (records["protocol"] == "generation")]
    assert is_wanted.sum() == 2
    assert one["score"].tolist() == [probes[is_wanted]["score"].mean()]


def test_a_missing_axis_makes_the_average_missing(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre", chances={"reliability": 1.0, "generality": 0.5})
    fake.write_manifest()
    cells = load(fake).cells
    assert cells["loc"].isna().all()
    assert cells["avg"].isna().all()
    assert cells["rel"].tolist() == [1.0, 1.0]


def test_a_cell_without_any_answer_has_no_scores(fake):
    """A model with random weights is measured for cost only."""
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_cell("ft-l", "tiny/mistral", "zsre")
    fake.write_manifest()
    pd.read_parquet(folder / "records.parquet").iloc[:0].to_parquet(folder / "records.parquet")
    (folder / "metrics.json").write_text(json.dumps({"diagnostics": {}}))
    cells = load(fake).cells.set_index("model")
    assert cells.loc["tiny/llama", "avg"].isna().all()
    assert cells.loc["tiny/mistral", "avg"].notna().all()


def test_metrics_that_contradict_the_records_are_refused(fake):
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["generation"]["generality"]["score"] += 0.1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="generation gen"):
        load(fake)


def test_every_question_has_its_scope_once_and_only_where_the_method_has_one(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre")
    folder = fake.write_cell("onceedit", "tiny/llama", "zsre")
    fake.write_manifest()
    scopes = load(fake).scopes
    probes = pd.read_parquet(folder / "records.parquet")
    once = probes[probes["protocol"] == "generation"]
    assert set(scopes["cell"]) == {folder.name}
    assert len(scopes) == len(once)
    for axis, same in scopes.groupby("axis"):
        assert sorted(same["scope"]) == sorted(once.loc[once["axis"] == axis, "scope"])


def test_a_cell_from_before_the_scope_was_recorded_is_read_without_one(fake):
    folder = fake.write_cell("onceedit", "tiny/llama", "zsre")
    fake.write_manifest()
    before = load(fake)
    pd.read_parquet(folder / "records.parquet").drop(columns="scope").to_parquet(folder / "records.parquet")
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["scope"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    after = load(fake)
    assert after.scopes.empty
    assert not before.scopes.empty
    pd.testing.assert_frame_equal(after.records, before.records)


def test_scopes_that_contradict_the_records_are_refused(fake):
    folder = fake.write_cell("onceedit", "tiny/llama", "zsre")
    fake.write_manifest()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["scope"]["reliability"]["auroc"]["both"] -= 0.1
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="disagree on the scope"):
        load(fake)


def test_a_swept_option_is_read_as_the_method_and_its_value(fake):
    """Labels as `harness.suite.sweep` makes them."""
    labels = {
        "onceedit.lambda_weight=0.2": ("OnceEdit, lambda_weight=0.2", None),
        "ft-l.lr=1e-05.steps=3": ("ft-l, lr=1e-05, steps=3", None),
        "onceedit.deepen.lambda_weight=0.0": ("OnceEdit (deepen), lambda_weight=0.0", "deepen"),
        "mine.seed_text=a.b": ("mine, seed_text=a.b", None),
        "v1.5": ("v1.5", None),
    }
    for label, (_, variant) in labels.items():
        fake.write_cell("onceedit", "tiny/llama", "zsre", label=label, variant=variant, hparams={"label": label})
    fake.write_manifest()
    cells = load(fake).cells.drop_duplicates("cell")
    assert dict(zip(cells["label"], cells["title"], strict=True)) == {
        label: title for label, (title, _) in labels.items()
    }


def test_protocols_are_in_order_of_registration_and_one_of_an_absent_plug_in_keeps_its_name(fake):
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    for name in ("records.parquet", "metrics.json", "cell.json"):
        _rename_protocol(folder / name, "teacher_forced", "mine")
    frame = load(fake)
    assert frame.cells["protocol"].tolist() == ["generation", "mine"]
    assert [protocol_title(name) for name in ("teacher_forced", "mine")] == ["teacher-forced", "mine"]


def _rename_protocol(file, old, new):
    if file.suffix == ".json":
        file.write_text(file.read_text().replace(f'"{old}"', f'"{new}"'))
    else:
        pd.read_parquet(file).replace({"protocol": {old: new}}).to_parquet(file)


def test_a_suite_that_was_not_run_names_the_command(fake):
    with pytest.raises(UserError, match="has not been run") as refusal:
        load(fake)
    assert refusal.value.fix == f"python -m harness run main_table --scale mini --store {fake.root}"


def test_a_suite_that_was_run_at_another_scale_names_it(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    with pytest.raises(UserError, match="not been run at scale 'paper' in this store, only at mini") as refusal:
        load_suite(fake.root, "main_table", "paper")
    assert refusal.value.fix == f"python -m harness report main_table --scale mini --store {fake.root}"
    with pytest.raises(UserError, match=r"did you mean 'main_table'\?"):
        load_suite(fake.root, "maintable", "mini")


def test_a_suite_without_a_finished_cell_says_why_and_names_its_own_command(fake):
    fake.write_failure("ft-l", "tiny/llama", "zsre", "out of memory")
    fake.write_manifest()
    with pytest.raises(
        UserError, match=r"none of the 1 cells of main_table.mini is finished \(failed: out of memory\)"
    ) as refusal:
        load(fake)
    assert refusal.value.fix == f"python -m harness run main_table --scale mini --store {fake.root}"


@pytest.mark.parametrize("file", ["cell.json", "metrics.json", "cost.json", "provenance.json", "records.parquet"])
def test_a_cell_that_cannot_be_read_is_one_line_that_names_it(fake, file):
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    with (folder / file).open("r+b") as cut:
        cut.truncate(20)
    with pytest.raises(UserError, match="damaged, or written by another version") as refusal:
        load(fake)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cell_of_a_version_that_wrote_less_is_one_line(fake):
    folder = fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    cost = json.loads((folder / "cost.json").read_text())
    del cost["device_class"]
    (folder / "cost.json").write_text(json.dumps(cost))
    with pytest.raises(UserError, match=r"missing key 'device_class'"):
        load(fake)


def test_two_models_of_one_name_are_distinguished_by_their_settings(fake):
    """As a sweep over `dtype` makes them."""
    folders = {
        dtype: fake.write_cell("ft-l", "tiny/llama", "zsre", hparams={"of": dtype}) for dtype in ("float32", "bfloat16")
    }
    failed = fake.write_failure("onceedit", "tiny/llama", "zsre", "out of memory")
    other = fake.write_cell("ft-l", "tiny/gptj", "zsre")
    for dtype, folder in [*folders.items(), ("bfloat16", failed), ("float32", other)]:
        cell = json.loads((folder / "cell.json").read_text())
        cell["model"]["dtype"] = dtype
        (folder / "cell.json").write_text(json.dumps(cell))
    fake.add_planned("rome", "tiny/gptj", "zsre")
    fake.write_manifest()
    frame = load(fake)
    assert list(frame.models()) == ["tiny/llama (dtype float32)", "tiny/llama (dtype bfloat16)", "tiny/gptj"]
    assert list(frame.models().values())[1] == "Llama2-7B (mini) (dtype bfloat16)"
    assert list(frame.missing["model"]) == ["tiny/llama (dtype bfloat16)", "tiny/gptj"]


def test_two_cells_in_one_row_are_refused(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre", hparams={"lr": 1})
    fake.write_cell("ft-l", "tiny/llama", "zsre", hparams={"lr": 2})
    fake.write_manifest()
    with pytest.raises(UserError, match="belong in the same row of a table"):
        load(fake)


def test_titles_distinguish_variants_and_numbers_of_edits(fake):
    fake.write_cell("onceedit", "tiny/llama", "zsre", variant="deepen")
    fake.write_cell("onceedit", "tiny/llama", "zsre", label="DeePEn+DW", hparams={"lr": 1})
    fake.write_cell("onceedit", "tiny/llama", "zsre", variant="deepen", records=20)
    fake.write_manifest()
    cells = load(fake).cells
    assert set(cells["title"]) == {"OnceEdit (deepen)", "DeePEn+DW"}
    assert set(cells["section_title"]) == {"ZsRE (edits 50)", "ZsRE (edits 20)"}


def test_unfinished_cells_are_named_with_their_reason(fake):
    fake.write_suite(models=("tiny/llama", "tiny/mistral"))
    fake.write_failure("ft-l", "tiny/llama", "zsre", "out of memory")
    fake.add_planned("onceedit", "tiny/mistral", "counterfact")
    fake.add_planned("onceedit", "tiny/gptj", "counterfact")
    fake.add_planned("ft-l", "tiny/llama", "mquake")
    fake.add_planned("rome", "tiny/llama", "zsre")
    fake.write_manifest()
    missing = load(fake).missing
    found = list(zip(missing["title"], missing["model"], missing["data"], missing["reason"], strict=True))
    assert found == [
        ("FT-L", "tiny/llama", "zsre", "failed: out of memory"),
        ("OnceEdit", "tiny/mistral", "counterfact", "not run"),
        ("OnceEdit", "tiny_gptj", "counterfact", "not run"),
        ("FT-L", "tiny/llama", "mquake", "not run"),
        ("ROME", "tiny/llama", "zsre", "not run"),
    ]


def test_what_is_missing_of_a_suite_is_one_line_with_the_command_that_runs_it(fake):
    fake.write_suite(methods=("none",), data=("zsre",))
    assert load(fake).gaps() == ""
    fake.write_failure("ft-l", "tiny/llama", "zsre", "out of memory")
    fake.write_manifest()
    command = f"main_table --scale mini --store {fake.root}"
    assert load(fake).gaps() == f"1 of 4 cells are missing: 1 failed; run: python -m harness retry {command}"
    fake.add_planned("onceedit", "tiny/gptj", "zsre")
    fake.unresolved = {"onceedit-tiny_llama-zsre": "no such folder: x"}
    fake.write_manifest()
    assert load(fake).gaps() == (
        f"3 of 6 cells are missing: 1 failed, 1 not run, 1 not run: no such folder: x; run: python -m harness run {command}"
    )
