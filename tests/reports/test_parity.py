"""Native cells next to another backend's: weights, predictions, badges and the table."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from harness import registry
from reports.frame import load_suite
from reports.parity import badge, comparisons

LLAMA = "tiny/llama"
UNEDITED = {"down.weight": np.eye(4, dtype=np.float32), "up.weight": np.ones((4, 2), dtype=np.float32)}


def keep_weights(cell, edited):
    norms = {name: float(np.linalg.norm(value - UNEDITED[name])) for name, value in edited.items()}
    save_file(edited, cell / "edited.safetensors", metadata={"change_norms": json.dumps(norms)})


def pair(fake, variant="faithful-easyedit", **native):
    """A native cell and EasyEdit's, with the same answers."""
    theirs = fake.write_cell("ft-l", LLAMA, "zsre", variant=variant, label="theirs", backend="easyedit")
    ours = fake.write_cell("ft-l", LLAMA, "zsre", variant=variant, label="ours", **native)
    for name in ("records.parquet", "metrics.json"):
        shutil.copy(theirs / name, ours / name)
    fake.write_manifest(["parity"])
    return ours, theirs


def compared(fake):
    return list(comparisons(load_suite(fake.root, "main_table", "mini")))


def change_predictions(cell, share):
    rows = pd.read_parquet(cell / "records.parquet")
    rows.loc[: round(share * len(rows)) - 1, "predicted"] = "something else"
    rows.to_parquet(cell / "records.parquet")


def test_the_same_answers_without_weights_are_exact(fake):
    pair(fake)
    (found,) = compared(fake)
    assert (found.same, found.probes, found.is_faithful) == (1.0, 500, True)
    assert np.isnan(found.weights)
    assert badge([found], []) == "exact"


def test_other_predictions_are_counted_over_all_probes(fake):
    ours, _ = pair(fake)
    change_predictions(ours, 0.04)
    (found,) = compared(fake)
    assert found.same == pytest.approx(0.96)
    assert badge([found], []) == "equivalent on 96.0% of predictions"
    change_predictions(ours, 0.06)
    (found,) = compared(fake)
    assert badge([found], ["theirs rounds, file.py:3"]) == "differs: theirs rounds, file.py:3"


def test_weights_are_compared_by_the_norm_of_the_change(fake):
    ours, theirs = pair(fake)
    down = UNEDITED["down.weight"]
    keep_weights(theirs, {"down.weight": down + 3})  # the change has norm 12
    keep_weights(ours, {"down.weight": down + 3.003})
    (found,) = compared(fake)
    assert found.weights == pytest.approx(1e-3, rel=1e-3)


def test_a_weight_changed_by_only_one_of_them_counts_with_its_whole_change(fake):
    ours, theirs = pair(fake)
    up = UNEDITED["up.weight"]
    keep_weights(theirs, {"down.weight": UNEDITED["down.weight"] + 3})
    keep_weights(ours, {"down.weight": UNEDITED["down.weight"] + 3, "up.weight": up + 1})
    (found,) = compared(fake)
    assert found.weights == pytest.approx(np.sqrt(8) / 12)


def test_weights_of_half_precision_are_compared_with_wider_ones(fake):
    """EasyEdit's of a bfloat16 model are bfloat16, ours may be float32. 3.0 and 4.0 are the same in both."""
    ours, theirs = pair(fake)
    down = UNEDITED["down.weight"]
    keep_weights(ours, {"down.weight": down + 3})
    for kind, change in ((torch.bfloat16, 4), (torch.float16, 4), (torch.float32, 4)):
        edited = {"down.weight": torch.from_numpy(down + change).to(kind)}
        save_torch(edited, theirs / "edited.safetensors", metadata={"change_norms": json.dumps({"down.weight": 16.0})})
        (found,) = compared(fake)
        assert found.weights == 0.25


def test_weights_that_nobody_changed_are_the_same(fake):
    ours, theirs = pair(fake)
    keep_weights(theirs, {})
    keep_weights(ours, {})
    assert compared(fake)[0].weights == 0
    keep_weights(ours, {"down.weight": UNEDITED["down.weight"] + 3})
    assert compared(fake)[0].weights == np.inf


def test_weights_decide_where_they_were_kept(fake):
    ours, theirs = pair(fake)
    keep_weights(theirs, {"down.weight": UNEDITED["down.weight"] + 3})
    keep_weights(ours, {"down.weight": UNEDITED["down.weight"] + 4})
    (found,) = compared(fake)
    assert found.same == 1.0
    assert badge([found], []) == "differs, cause unknown"


def test_cells_without_answers_or_weights_are_not_reported_as_different(fake):
    """As those of random weights are."""
    (found,) = compared(fake) if pair(fake) else ()
    assert badge([dataclasses.replace(found, same=np.nan, probes=0)], []).startswith("not compared")
    assert badge([dataclasses.replace(found, same=np.nan, weights=0.0)], []).startswith("equivalent")


def test_only_the_same_variant_is_faithful(fake):
    theirs = fake.write_cell("ft-l", LLAMA, "zsre", variant="faithful-easyedit", label="theirs", backend="easyedit")
    fake.write_cell("ft-l", LLAMA, "zsre", variant="corrected", label="corrected")
    fake.write_manifest(["parity"])
    (found,) = compared(fake)
    assert (found.reference, found.is_faithful) == (theirs.name, False)
    _, numbers = registry.tables.get("parity")(load_suite(fake.root, "main_table", "mini"))
    assert numbers["badge"].tolist() == [""], "it is meant to differ"


def test_seconds_are_compared_on_one_class_of_device_only(fake):
    pair(fake, cost={"phases_s": {"edit": 1.0}})
    assert compared(fake)[0].edit_ratio == pytest.approx(4.0)
    pair(fake, cost={"phases_s": {"edit": 1.0}, "device_class": "cuda: NVIDIA A100"})
    assert np.isnan(compared(fake)[0].edit_ratio)


def test_the_table_shows_both_and_the_badge(fake):
    pair(fake)
    (table,), numbers = registry.tables.get("parity")(load_suite(fake.root, "main_table", "mini"))
    (section,) = table.sections
    assert [row.title for row in section.rows] == ["Llama2-7B (mini): theirs [easyedit]", "Llama2-7B (mini): ours"]
    assert section.remarks == ("FT-L: exact.",)
    same = [column.title for column in table.columns].index("Same")
    assert [row.entries[same].text for row in section.rows] == ["–", "1.000"]
    assert numbers[["same", "badge"]].to_dict("records") == [{"same": 1.0, "badge": "exact"}]


def test_a_cell_of_easyedit_that_failed_is_named_and_its_model_left_out_of_the_badge(fake):
    pair(fake)
    ours = fake.write_cell("ft-l", "tiny/gptj", "zsre", variant="faithful-easyedit", label="ours")
    failed = fake.write_cell(
        "ft-l", "tiny/gptj", "zsre", variant="faithful-easyedit", label="theirs", backend="easyedit"
    )
    (failed / "DONE").unlink()
    (failed / "FAILED").write_text("the EasyEdit process was killed by SIGKILL in 'apply'\n")
    fake.write_manifest(["parity"])
    (table,), numbers = registry.tables.get("parity")(load_suite(fake.root, "main_table", "mini"))
    (section,) = table.sections
    assert section.remarks == ("FT-L on Llama2-7B (mini): exact.",)
    assert any("on GPT-J-6B (mini): failed: the EasyEdit process was killed" in note for note in table.notes)
    same = [column.title for column in table.columns].index("Same")
    alone = next(row for row in section.rows if row.title == "GPT-J-6B (mini): ours")
    assert alone.entries[same].text == "–"
    assert ours.name not in " ".join(numbers["cells"])


def test_every_other_backend_has_a_table_of_its_own(fake):
    for backend in ("native", "easyedit", "another"):
        fake.write_cell("ft-l", LLAMA, "zsre", label=backend, backend=backend, chances={"reliability": 0.5})
    fake.write_manifest(["parity"])
    tables, numbers = registry.tables.get("parity")(load_suite(fake.root, "main_table", "mini"))
    assert [table.name for table in tables] == ["parity-easyedit-zsre", "parity-another-zsre"]
    for table, backend in zip(tables, ("easyedit", "another"), strict=True):
        titles = [row.title.removeprefix("Llama2-7B (mini): ") for row in table.sections[0].rows]
        assert titles == ["native", f"{backend} [{backend}]"]
        assert table.columns[-1].group == f"native vs. {backend}"
    assert numbers["backend"].tolist() == ["easyedit", "another"]


def test_a_suite_without_another_backend_has_nothing_to_compare(fake):
    fake.write_suite(models=["tiny/llama"], data=["zsre"], tables=["parity"])
    (table,), numbers = registry.tables.get("parity")(load_suite(fake.root, "main_table", "mini"))
    assert table.sections == ()
    assert table.notes == ("There is nothing to compare: no cell of another backend is finished.",)
    assert numbers.empty
