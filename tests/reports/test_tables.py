"""Layout, ranking, LaTeX and terminal."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness import registry
from harness.errors import UserError
from harness.evaluation.probes import AXES
from reports import latex, write_report
from reports.frame import load_suite
from reports.latex import compile_all, compile_pdf, escape, render
from reports.layout import Column, Mark, Section, Table, TableEntry, TableRow, ranked
from reports.tables.time import LEGEND
from reports.terminal import print_beginning, print_table
from tests.helpers import fake_store
from tests.helpers.fake_store import MODELS


def rows(*values, digits=2):
    return [TableRow(f"m{number}", (TableEntry(value, digits=digits),)) for number, value in enumerate(values)]


def marks(found):
    return [row.entries[0].mark.value for row in found]


def build(fake, name="main"):
    return registry.tables.get(name)(load_suite(fake.root, "main_table", "mini"))


def printed(table, width, terminal=False):
    console = Console(width=width, record=True, force_terminal=terminal, color_system=None)
    with console.capture() as capture:
        print_table(table, console)
    return capture.get()


def entries_of(table, section, title):
    row = next(row for row in table.sections[section].rows if row.title == title)
    return dict(zip([f"{column.group} {column.title}".strip() for column in table.columns], row.entries, strict=True))


def test_best_and_second_are_marked_and_ties_share():
    assert marks(ranked(rows(0.5, 0.9, 0.7, 0.9), [Column("Rel")])) == ["none", "best", "second", "best"]


def test_values_are_ranked_as_printed():
    assert marks(ranked(rows(0.991, 0.994, 0.5), [Column("Rel")])) == ["best", "best", "second"]


def test_the_reference_and_missing_values_are_not_ranked():
    reference = TableRow("Unedited", (TableEntry(1.0),), is_reference=True)
    found = ranked([reference, *rows(0.2, np.nan, 0.1)], [Column("Loc")])
    assert marks(found) == ["none", "best", "none", "second"]


def test_a_single_method_is_not_marked_as_best():
    assert marks(ranked(rows(0.5), [Column("Rel")])) == ["none"]
    assert marks(ranked(rows(0.5, 0.6), [Column("Freq", is_ranked=False)])) == ["none", "none"]


def test_the_main_table_has_the_layout_of_the_paper(fake):
    tables, _ = build(fake.write_suite())
    assert [table.name for table in tables] == ["main-teacher_forced", "main-generation"]
    table = tables[0]
    assert [column.title for column in table.columns] == ["Rel", "Gen", "Loc", "Avg"] * 3 + ["Score", "Freq"]
    assert [section.title for section in table.sections] == ["ZsRE", "CounterFact"]
    assert [row.title for row in table.sections[0].rows] == ["Unedited", "FT-L", "OnceEdit"]
    once = entries_of(table, 0, "OnceEdit")
    assert once["Score"].mark is Mark.BEST
    assert once["Freq"].text == "1"
    assert entries_of(table, 0, "FT-L")["Freq"].text == "3"
    assert entries_of(table, 0, "Unedited")["Freq"].text == "–"
    for fact in ("mini scale", "seed 0", "50 edits", "SHA-256", "Code: 012345678", "95% bootstrap"):
        assert fact in table.caption


def test_the_published_scores_follow_from_the_published_axes(shared):
    """Avg and Score as computed here reproduce Table 1 of the paper, but for the one Score that is a misprint."""
    published = json.loads((shared / "paper" / "onceedit_tables.json").read_text())
    printed_axes = pd.DataFrame([record for record in published["records"] if record["table"] == 1])
    printed_axes["mean"] = printed_axes[["rel", "gen", "loc"]].mean(axis=1)
    scores = printed_axes.groupby(["method", "dataset"])["mean"].mean()
    wrong = [
        (score["method"], score["dataset"])
        for score in published["scores"]
        if score["table"] == 1 and abs(scores[score["method"], score["dataset"]] - score["score"]) > 0.0101
    ]
    assert wrong == [("OnceEdit", "Counterfact")]


def test_every_number_can_be_traced_to_its_cells(fake):
    fake.write_suite(templates=("none", "paper"))
    tables, numbers = build(fake)
    is_score = (numbers["quantity"] == "score") & (numbers["method"] == "OnceEdit") & (numbers["data"] == "ZsRE")
    score = numbers[is_score & (numbers["protocol"] == "teacher_forced")].iloc[0]
    assert score["value"] == entries_of(tables[0], 0, "OnceEdit")["Score"].value
    assert score["low"] < score["value"] < score["high"]
    assert len(score["cells"].split()) == 3
    assert all((fake.root / "cells" / cell).is_dir() for cell in " ".join(numbers["cells"]).split())
    of_axis = numbers[(numbers["quantity"] == "gen") & (numbers["protocol"] == "generation")]
    assert len(of_axis) == 2 * 3 * 3 * 2
    assert of_axis["is_shown"].sum() == 2 * 3 * 3


def test_a_template_that_is_not_the_first_is_marked_and_explained(fake):
    weak, strong = ({"reliability": p, "generality": p, "locality": p} for p in (0.2, 0.9))
    fake.write_cell("ft-l", "tiny/llama", "zsre", template="none", chances=weak)
    fake.write_cell("ft-l", "tiny/llama", "zsre", template="paper", chances=strong)
    fake.write_manifest()
    table = build(fake)[0][0]
    assert entries_of(table, 0, "FT-L")["Llama2-7B (mini) Avg"].note == "‡"
    assert table.notes[0] == "‡ with prompt template 'paper'"


def test_what_an_edited_model_says_about_itself_is_below_the_table_once(fake):
    for seed in (0, 1):
        folder = fake.write_cell("onceedit", "tiny/llama", "zsre", seed=seed)
        origin = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**origin, "remarks": ["it loses half of its tokens"]}))
    fake.write_manifest()
    assert build(fake)[0][0].notes == (
        "OnceEdit on Llama2-7B (mini): it loses half of its tokens.",
        "ZsRE: n = 50 edits of split test, seeds 0, 1; every score can reach 1.",
    )


def test_a_remark_stands_once_with_all_that_it_is_true_of(fake):
    for method, data in [("ft-l", "zsre"), ("ft-l", "counterfact"), ("onceedit", "zsre"), ("onceedit", "counterfact")]:
        folder = fake.write_cell(method, "tiny/llama", data)
        remarks = ["it is slow", *["it forgets 7%" if data == "zsre" else "it forgets 12%"] * (method == "onceedit")]
        origin = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**origin, "remarks": remarks}))
    fake.write_manifest()
    assert build(fake)[0][0].notes[1:3] == (
        "FT-L; OnceEdit on Llama2-7B (mini), ZsRE; Llama2-7B (mini), CounterFact: it is slow.",
        "OnceEdit on Llama2-7B (mini), ZsRE; Llama2-7B (mini), CounterFact: it forgets 7 to 12%.",
    )


def test_missing_cells_are_dashes_with_a_reason(fake):
    fake.write_suite(methods=("none", "onceedit"), data=("zsre",))
    fake.write_failure("ft-l", "tiny/llama", "zsre", "out of memory")
    fake.add_planned("onceedit", "tiny/llama", "elsewhere")
    fake.write_manifest()
    table = build(fake)[0][0]
    assert {entry.text for entry in entries_of(table, 0, "FT-L").values()} == {"–"}
    assert "– ZsRE: FT-L on Llama2-7B (mini): failed: out of memory." in table.sections[0].remarks
    assert "– elsewhere: OnceEdit on Llama2-7B (mini): not run." in table.notes


def test_scores_that_no_editor_can_reach_are_stated_below_every_table(fake):
    for model, most in (("llama", 0.99), ("gptj", 0.985)):
        for method in ("none", "ft-l"):
            folder = fake.write_cell(method, f"tiny/{model}", "zsre")
            metrics = json.loads((folder / "metrics.json").read_text())
            metrics["attainable"] = {"teacher_forced": {"generality": most, "locality": 0.99875, "portability": 0.5}}
            if method != "none":
                (folder / "metrics.json").write_text(json.dumps(metrics))
    fake.write_manifest()
    stated = (
        "ZsRE: a model with all edits can reach at most Gen 0.985–0.99, Loc 0.9988, "
        "because some records contradict each other."
    )

    teacher_forced, generation = build(fake)[0]

    assert stated in teacher_forced.sections[0].remarks
    assert not any("at most" in remark for remark in generation.sections[0].remarks)
    assert r"\footnotesize ZsRE: a model with all edits can reach at most Gen 0.985--0.99, Loc 0.9988" in render(
        [teacher_forced], "x"
    )


@pytest.mark.parametrize(
    ("protocols", "attainable", "is_said"),
    [
        (("teacher_forced", "generation"), {}, [True, True]),
        (("teacher_forced", "natural"), {}, [True, False]),
        (("easyedit", "a_plugin_that_is_not_loaded"), {}, [False, False]),
        (("teacher_forced", "generation"), {"generation": {"single_hop": 0.9}}, [True, False]),
    ],
)
def test_that_every_score_can_reach_1_is_said_only_where_it_is_known(fake, monkeypatch, protocols, attainable, is_said):
    monkeypatch.setattr(fake_store, "PROTOCOLS", protocols)
    for method in ("none", "ft-l"):
        folder = fake.write_cell(method, "tiny/llama", "zsre")
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"attainable": attainable}))
    fake.write_manifest()

    for name in ("main", "ripple"):
        found = {
            table.name.split("-")[1]: "every score can reach 1" in table.notes[-1] for table in build(fake, name)[0]
        }
        assert found == dict(zip(protocols, is_said, strict=True))


def test_only_tables_that_choose_the_template_again_say_so(fake):
    fake.write_suite(methods=("onceedit",), models=("tiny/llama",), data=("zsre",), templates=("none", "paper"))
    choice = "including the choice of the template"
    assert choice in build(fake)[0][0].caption
    assert choice not in build(fake, "calibration")[0][0].caption


def test_methods_and_models_that_were_never_run_are_left_out_and_named_in_one_sentence(fake):
    fake.write_suite(methods=("none", "onceedit"), models=("tiny/llama", "tiny/mistral"), data=("zsre",))
    for method in ("ft-l", "rome"):
        for model in ("tiny/llama", "tiny/mistral"):
            fake.add_planned(method, model, "zsre")
    fake.unresolved = {f"{method}-tiny_gptj-zsre": "no such folder: x" for method in ("none", "onceedit")}
    fake.write_manifest()
    table = build(fake)[0][0]
    assert [row.title for row in table.sections[0].rows] == ["Unedited", "OnceEdit"]
    assert [column.group for column in table.columns if column.title == "Avg"] == [
        "Llama2-7B (mini)",
        "Mistral-7B-v0.1 (mini)",
    ]
    assert table.sections[0].remarks[:2] == (
        "– ZsRE: FT-L, ROME on Llama2-7B (mini), Mistral-7B-v0.1 (mini): not run.",
        "– ZsRE: Unedited, OnceEdit on Tiny-GPT-J: not run: no such folder: x.",
    )
    assert not any(math.isnan(row.entries[-2].value) for row in table.sections[0].rows)


def test_a_method_that_was_to_run_and_cannot_is_a_row_of_dashes_with_the_reason_below(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    fake.unresolved = {f"{method}-tiny_llama-zsre": "no text file" for method in ("memit", "rome")}
    fake.asked = {"memit-tiny_llama-zsre"}
    fake.write_manifest()
    section = build(fake)[0][0].sections[0]
    assert [row.title for row in section.rows] == ["Unedited", "MEMIT"]
    assert all(math.isnan(entry.value) for entry in section.rows[1].entries)
    assert section.remarks[0] == "– ZsRE: MEMIT, ROME on Llama2-7B (mini): not run: no text file."


def test_a_cell_that_was_never_run_is_missing_only_where_it_belongs(fake):
    """Its folder does not exist, so its number of edits follows from the cells of other methods."""
    fake.write_cell("ft-l", "tiny/llama", "zsre", records=6)
    fake.write_cell("onceedit", "tiny/llama", "zsre", records=6)
    fake.write_cell("onceedit", "tiny/llama", "zsre", records=5)
    for method in ("ft-l", "onceedit"):
        fake.add_planned(method, "tiny/llama", "zsre")
        fake.cells[-1] = fake.cells[-1].replace("0" * 12, f"{len(fake.cells):012}")
    fake.write_manifest()
    table = build(fake)[0][0]
    of_six, of_five = (section.remarks for section in table.sections)
    assert not any("not run" in remark for remark in of_six)
    assert "– ZsRE (edits 5): FT-L on Llama2-7B (mini): not run." in of_five
    assert "– ZsRE with other settings: OnceEdit on Llama2-7B (mini): not run." in table.notes


@pytest.mark.parametrize("how", ["failed", "never run"])
def test_the_first_template_is_that_of_the_suite_whatever_became_of_the_first_cell(fake, how):
    for model in ("tiny/llama", "tiny/mistral"):
        for template in ("none", "paper"):
            if (model, template) != ("tiny/llama", "none"):
                fake.write_cell("ft-l", model, "zsre", template=template)
            elif how == "failed":
                fake.write_failure("ft-l", model, "zsre", "out of memory")
            else:
                fake.add_planned("ft-l", model, "zsre")
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    assert frame.templates() == ["none", "paper"]
    assert "Prompt template: 'none'." in build(fake, "ripple")[0][0].caption
    assert build(fake)[0][0].notes[0] == "‡ with prompt template 'paper'"


def test_a_dataset_that_was_never_run_is_one_sentence_with_its_methods_and_models(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    for method in ("none", "ft-l", "rome"):
        fake.add_planned(method, "tiny/llama", "counterfact")
    fake.write_manifest()
    notes = build(fake)[0][0].notes
    assert "– CounterFact: Unedited, FT-L, ROME on Llama2-7B (mini): not run." in notes
    assert not any("ft-l-" in note for note in notes)


def test_components_are_the_methods_of_the_suite_in_their_order(fake):
    for model in ("tiny/llama", "tiny/gptj"):
        for label in ("DeePEn", "DeePEn+DW", "onceedit"):
            fake.write_cell("onceedit", model, "zsre", label=label, hparams={"label": label})
    fake.write_manifest(["components"])
    table = build(fake, "components")[0][0]
    assert [row.title for row in table.sections[0].rows] == ["DeePEn", "DeePEn+DW", "OnceEdit"]


def test_a_swept_option_gives_one_row_per_value(fake):
    """The shape of the paper's Table 8: values of one setting by models."""
    for value in ("0.0", "0.2", "0.4"):
        for model in ("tiny/llama", "tiny/mistral"):
            label = f"onceedit.lambda_weight={value}"
            fake.write_cell("onceedit", model, "zsre", label=label, hparams={"lambda_weight": float(value)})
    fake.write_manifest(["ablation"])
    table = build(fake, "ablation")[0][1]
    assert (table.name, table.title) == ("ablation-generation", "Sensitivity to one setting, generation")
    assert [row.title for row in table.sections[0].rows] == [
        *("OnceEdit, lambda_weight=0.0", "OnceEdit, lambda_weight=0.2", "OnceEdit, lambda_weight=0.4"),
    ]
    assert [column.title for column in table.columns] == ["Rel", "Gen", "Loc", "Avg"] * 2 + ["Score", "Freq"]


def test_three_seeds_are_one_line_per_method_and_the_caption_says_so(fake):
    fake.write_suite(data=("zsre",), seeds=(0, 1, 2))
    for name in ("main", "time"):
        titles = [row.title for row in build(fake, name)[0][0].sections[0].rows]
        assert titles == ["Unedited", "FT-L", "OnceEdit"][name == "time" :]
    caption = build(fake)[0][0].caption
    assert "averaged over seeds 0, 1, 2" in caption
    assert "bootstrap confidence interval over seeds and records" in caption


def test_a_seed_that_failed_is_named_below_the_table(fake):
    fake.write_suite(methods=("onceedit",), models=("tiny/llama",), data=("zsre",), seeds=(0, 1))
    folder = fake.write_cell("onceedit", "tiny/llama", "zsre", seed=2)
    (folder / "DONE").unlink()
    (folder / "FAILED").write_text("out of memory\n")
    fake.add_planned("onceedit", "tiny/llama", "zsre")
    fake.write_manifest()
    remarks = build(fake)[0][0].sections[0].remarks
    assert remarks == (
        "– ZsRE: OnceEdit on Llama2-7B (mini), seed 2: failed: out of memory.",
        "– ZsRE: OnceEdit on Llama2-7B (mini), some seeds: not run.",
    )


def test_calibration_has_one_row_per_method_and_model_with_routing_scores(fake):
    fake.write_suite(seeds=(0, 1), models=("tiny/llama", "tiny/gptj"))
    tables, numbers = build(fake, "calibration")
    table = tables[0]
    assert [section.title for section in table.sections] == ["ZsRE", "CounterFact"]
    assert [row.title for row in table.sections[0].rows] == [
        *("OnceEdit on Llama2-7B (mini)", "OnceEdit on GPT-J-6B (mini)"),
    ]
    assert [f"{column.group} {column.title}" for column in table.columns] == [
        *(
            "Mean routing score Rel",
            "Mean routing score Gen",
            "Mean routing score Loc",
            "Mean routing score Unrel",
            "AUROC Rel",
            "AUROC Gen",
        ),
        *("> 0.7 Rel", "> 0.7 Gen", "< 0.3 Loc", "< 0.3 Unrel"),
    ]
    assert "do not decide by prompt or were run before routing scores were recorded: FT-L." in table.notes[-1]
    assert {marks(section.rows)[0] for section in table.sections} == {"none"}
    assert {len(cells.split()) for cells in numbers["cells"]} == {2}


def test_calibration_shows_the_means_over_seeds_of_what_the_cells_say(fake):
    fake.write_suite(methods=("onceedit",), models=("tiny/llama",), data=("zsre",), seeds=(0, 1, 2))
    tables, numbers = build(fake, "calibration")
    scopes = [json.loads((fake.root / "cells" / cell / "metrics.json").read_text())["scope"] for cell in fake.cells]
    shown = entries_of(tables[0], 0, "OnceEdit on Llama2-7B (mini)")
    for column, values in {
        "Mean routing score Unrel": [scope["locality_unrelated"]["mean"] for scope in scopes],
        "AUROC Gen": [scope["generality"]["auroc"]["both"] for scope in scopes],
        "> 0.7 Gen": [scope["generality"]["share_above_0.7"] for scope in scopes],
        "< 0.3 Loc": [scope["locality"]["share_below_0.3"] for scope in scopes],
    }.items():
        assert shown[column].value == pytest.approx(np.mean(values))
    assert 0 < shown["AUROC Gen"].half_width < 0.1
    bins = numbers[(numbers["quantity"] == "histogram") & (numbers["axis"] == "locality")]
    counts = np.sum([scope["locality"]["histogram"] for scope in scopes], axis=0)
    assert bins["value"].tolist() == pytest.approx((counts / counts.sum()).tolist())
    assert bins["bin"].tolist() == [number / 10 for number in range(10)]


def test_histograms_of_routing_scores_have_one_table_per_model(fake):
    fake.write_suite(models=("tiny/llama", "tiny/gptj"))
    tables, _ = build(fake, "calibration")
    assert [table.name for table in tables[1:]] == [
        *("calibration-histogram-tiny/llama", "calibration-histogram-tiny/gptj"),
    ]
    rows = tables[1].sections[0].rows
    assert [row.title for row in rows] == [f"OnceEdit, {axis}" for axis in ("Rel", "Gen", "Loc", "Unrel")]
    for row in rows:
        assert sum(entry.value for entry in row.entries) == pytest.approx(1)


def test_calibration_uses_the_template_shown_in_the_main_table(fake):
    weak, strong = ({"reliability": p, "generality": p, "locality": p} for p in (0.2, 0.9))
    fake.write_cell("onceedit", "tiny/llama", "zsre", template="none", chances=weak)
    chosen = fake.write_cell("onceedit", "tiny/llama", "zsre", template="paper", chances=strong)
    fake.write_manifest()
    tables, numbers = build(fake, "calibration")
    assert tables[0].sections[0].rows[0].title == "OnceEdit (prompt template 'paper') on Llama2-7B (mini)"
    assert set(numbers["cells"]) == {chosen.name}


def test_without_any_routing_score_the_calibration_table_says_so_and_is_empty(fake):
    tables, numbers = build(fake.write_suite(methods=("none", "ft-l")), "calibration")
    assert len(tables) == 1
    assert tables[0].sections == ()
    assert numbers.empty
    assert "recorded: FT-L." in printed(tables[0], 100)


def test_time_counts_a_shared_edit_once_and_is_relative_to_onceedit(fake):
    table = build(fake.write_suite(), "time")[0][0]
    assert [row.title for row in table.sections[0].rows] == ["FT-L", "OnceEdit"]
    fine, once = entries_of(table, 0, "FT-L"), entries_of(table, 0, "OnceEdit")
    assert (once["Total edit s"].value, once["Total edit ×"].value) == (2.0, 1.0)
    assert (fine["Total edit s"].value, fine["Total edit ×"].value) == (12.0, 6.0)
    assert fine["GPT-J-6B (mini) edit ×"].value == 2.0
    assert table.notes == (LEGEND,)


def test_every_row_has_its_time_from_scratch_with_setup_and_attaching(fake):
    table = build(fake.write_suite(), "time")[0][0]
    fine, once = entries_of(table, 0, "FT-L"), entries_of(table, 0, "OnceEdit")
    assert (once["Total all s"].text, once["Total all ×"].text) == ("3.30", "1.00")
    assert (fine["Total all s"].text, fine["Total all ×"].text) == ("15.30", f"{15.3 / 3.3:.2f}")
    assert fine["GPT-J-6B (mini) all ×"].text == f"{5.1 / 3.1:.2f}"


def test_long_times_have_no_decimals(fake):
    fake.write_cell(
        "onceedit", "tiny/llama", "zsre", cost={"phases_s": {"setup": 900.0, "edit": 99.994, "attach": 0.1}}
    )
    fake.write_manifest()
    once = entries_of(build(fake, "time")[0][0], 0, "OnceEdit")
    assert (once["Total edit s"].text, once["Total all s"].text) == ("99.99", "1000")


def test_times_of_different_devices_are_not_compared(fake):
    fake.write_suite(data=("zsre",), methods=("onceedit",))
    for model in ("tiny/llama", "tiny/mistral", "tiny/gptj"):
        cost = {"device_class": "cuda: A100"} if model == "tiny/gptj" else None
        fake.write_cell("ft-l", model, "zsre", cost=cost)
    fake.write_manifest()
    fine = entries_of(build(fake, "time")[0][0], 0, "FT-L")
    assert fine["GPT-J-6B (mini) edit s"].value == 4.0
    assert fine["GPT-J-6B (mini) edit ×"].text == "–"
    assert fine["Total all ×"].text == "–"
    assert fine["Llama2-7B (mini) edit ×"].value == 2.0


def test_a_remark_says_why_there_is_no_multiple(fake):
    here = "cpu: AMD EPYC × 1 threads"
    fake.write_cell("onceedit", "tiny/llama", "zsre")
    for label in ("rome", "memit"):
        classes = {"device_classes": {"setup": ["cuda: A100"], "edit": [here]}}
        fake.write_cell("ft-l", "tiny/llama", "zsre", label=label, cost=classes)
    fake.write_manifest()
    tables, numbers = build(fake, "time")
    assert [entry.text for entry in tables[0].sections[0].rows[1].entries[:4]] == ["4.00", "2.00", "5.10", "–"]
    assert tables[0].sections[0].remarks == (
        "– ZsRE: rome; memit: no 'all ×' between different classes of device "
        f"(timed on {here} and cuda: A100; OnceEdit on {here}).",
    )
    assert list(numbers["setup_device_class"]) == [here, "cuda: A100", "cuda: A100"]
    assert "Device: cpu: AMD EPYC × 1 threads; cuda: A100." in tables[0].caption


def test_a_remark_names_the_places_without_a_multiple(fake):
    for model, device in (("tiny/llama", "cuda: A100"), ("tiny/mistral", "cuda: H100")):
        for method in ("ft-l", "onceedit"):
            fake.write_cell(method, model, "zsre", cost={"device_class": device})
    fake.write_manifest()
    section = build(fake, "time")[0][0].sections[0]
    assert [entry.text for entry in section.rows[0].entries[1::4]] == ["2.00", "2.00", "–"]
    assert section.remarks == (
        "– ZsRE, Total: FT-L; OnceEdit: no 'edit ×' or 'all ×' between different classes of device "
        "(timed on cuda: A100 and cuda: H100; OnceEdit on cuda: A100 and cuda: H100).",
    )


def test_without_onceedit_there_are_seconds_but_no_multiples_and_the_table_says_so(fake):
    table = build(fake.write_suite(methods=("none", "ft-l")), "time")[0][0]
    fine = entries_of(table, 0, "FT-L")
    assert (fine["Total edit s"].value, fine["Total edit ×"].text) == (12.0, "–")
    assert table.notes == (LEGEND, "×: no cell of OnceEdit is finished.")
    assert not table.sections[0].remarks


def test_times_of_processes_that_share_a_device_are_compared_with_one_another_and_not_to_be_quoted(fake):
    alone = {"device_class": "cpu: AMD EPYC × 1 threads"}
    shared = {"device_class": f"{alone['device_class']} (shared by 2 processes)", "shared_by": 2}
    for method in ("onceedit", "ft-l"):
        fake.write_cell(method, "tiny/llama", "zsre", cost=shared)
    fake.write_cell("ft-l", "tiny/llama", "zsre", label="alone", cost=alone)
    fake.write_manifest()
    table = build(fake, "time")[0][0]
    assert entries_of(table, 0, "FT-L")["Llama2-7B (mini) edit ×"].text == "2.00"
    assert entries_of(table, 0, "alone")["Llama2-7B (mini) edit ×"].text == "–"
    assert table.notes[1] == "Measured with 2 processes on one device: not to be quoted."
    assert table.sections[0].remarks[0].startswith("– ZsRE: alone: no 'edit ×'")


def test_times_that_are_not_citable_are_marked(fake):
    fake.write_suite(data=("zsre",), methods=("onceedit",))
    fake.write_cell("ft-l", "tiny/llama", "zsre", cost={"citable": False})
    fake.write_manifest()
    table = build(fake, "time")[0][0]
    assert entries_of(table, 0, "FT-L")["Llama2-7B (mini) edit s"].note == "*"
    assert entries_of(table, 0, "OnceEdit")["Llama2-7B (mini) edit s"].note == ""
    assert table.notes[1].startswith("* not citable")


@pytest.mark.parametrize("width", [100, 110, 120])
def test_the_terminal_table_fits_and_keeps_every_number(fake, width):
    table = build(fake.write_suite(templates=("none", "paper")))[0][0]
    text = printed(table, width, terminal=True)
    tabular = [line for line in text.splitlines() if line.startswith((" FT-L", " OnceEdit", " Unedited"))]
    assert len(tabular) == 6
    assert all(len(line.rstrip()) <= width for line in tabular)
    assert "…" not in text
    once = next(line for line in tabular if "OnceEdit" in line)
    for entry in entries_of(table, 0, "OnceEdit").values():
        assert entry.text in once
    assert "±" in once


@pytest.mark.parametrize("width", [40, 100])
def test_groups_of_columns_that_do_not_fit_are_printed_below_the_others(fake, width):
    table = build(fake.write_suite(), "time")[0][0]
    lines = printed(table, width, terminal=True).splitlines()
    once = [line for line in lines if line.startswith(" OnceEdit")]
    assert all(len(line.rstrip()) <= width for line in once)
    assert "…" not in "".join(lines)
    shown = [text for line in once[: len(once) // 2] for text in line.split()[1:]]
    assert shown == [entry.text for entry in table.sections[0].rows[1].entries]
    assert len(once) == (8 if width == 40 else 4)


def test_a_log_file_gets_the_whole_table_however_narrow(fake):
    table = build(fake.write_suite())[0][0]
    once = next(line for line in printed(table, 60).splitlines() if "OnceEdit" in line)
    assert once.count("±") == 4


def test_latex_marks_best_second_and_reference(fake):
    for label, chance in (("weak", 0.1), ("weaker", 0.1)):
        for model in MODELS:
            fake.write_cell("ft-l", model, "zsre", label=label, chances=dict.fromkeys(AXES, chance))
    tables, _ = build(fake.write_suite(data=("zsre",)))
    text = render(tables, "a test")
    once = entries_of(tables[0], 0, "OnceEdit")["Score"]
    assert rf"\textbf{{{once.text}}}{{\tiny\,$\pm${once.half_width_text}}} & 1 \\" in text
    assert rf"\underline{{{entries_of(tables[0], 0, 'FT-L')['Score'].text}}}" in text
    assert r"\textit{Unedited} &" in text
    assert r"\multicolumn{4}{c}{Llama2-7B (mini)}" in text
    assert r"\cmidrule(lr){2-5} \cmidrule(lr){6-9} \cmidrule(lr){10-13}" in text
    assert text.count(r"\begin{tabular}{lcccccccccccccc}") == 2


def test_special_characters_are_escaped():
    assert escape("50 % of a_b & {c} \\ ~ ^ → 中") == (
        r"50 \% of a\_b \& \{c\} \textbackslash{} \textasciitilde{} \textasciicircum{} $\rightarrow$ U+4E2D"
    )
    assert escape("run `x` --scale mini, 0.1–0.2, --- –-") == (
        r"run \textasciigrave{}x\textasciigrave{} -{}-scale mini, 0.1--0.2, -{}-{}- --{}-"
    )
    assert escape("Δw, λ ± 1") == r"$\Delta$w, $\lambda$ $\pm$ 1"
    assert escape("a\tb \x1b[31m é") == "a b U+001B[31m é"


def test_a_report_writes_and_prints_its_tables(fake, monkeypatch):
    monkeypatch.setattr(latex.shutil, "which", lambda name: None)
    fake.write_suite(tables=("main", "components"))
    console = Console(width=110, record=True)
    written = write_report(fake.root, "main_table", "mini", console)
    assert [path.name for path in written] == [
        f"{name}_table.{kind}" for name in ("main", "components", "time") for kind in ("txt", "tex", "md", "csv")
    ] + ["report.html"]
    assert all(path.parent == fake.root / "reports" / "main_table.mini" for path in written)
    text = console.export_text()
    assert "Editing quality, generation: CounterFact" in text
    assert "Editing time: ZsRE" in text
    assert "pdflatex is not installed" in text


def test_a_short_report_prints_whole_tables_of_the_first_kind_while_they_fit_and_names_the_file_of_the_rest(fake):
    fake.write_suite(tables=("main", "calibration"))
    console = Console(width=110, record=True)
    write_report(fake.root, "main_table", "mini", console, lines=30)
    text = console.export_text()
    file = fake.root / "reports" / "main_table.mini" / "main_table.txt"
    assert len(text.splitlines()) <= 31
    assert "Editing quality, teacher-forced: CounterFact" in text
    assert f"Editing quality, generation: see {file}" in text
    assert "Editing time" not in text
    whole = file.read_text()
    assert "Editing quality, generation: CounterFact" in whole
    assert (file.parent / "time_table.txt").read_text().startswith("Editing time: ZsRE")


def test_of_a_table_longer_than_the_screen_the_first_rows_are_printed():
    table = Table("t", "Sweep", "C", (Column("Rel"),), (Section("S", tuple(rows(*[0.5] * 500))),))
    console = Console(width=110, record=True)
    assert print_beginning([table], console, 20) == "all 500 rows of Sweep"
    assert 15 <= len(console.export_text().splitlines()) <= 20


def test_an_unknown_table_is_refused_with_a_suggestion(fake):
    fake.write_suite(data=("zsre",), methods=("ft-l",), tables=("mian",))
    with pytest.raises(UserError, match=r"unknown table 'mian' \(did you mean 'main'\?\)"):
        write_report(fake.root, "main_table", "mini", Console(quiet=True))


@pytest.fixture
def pdflatex():
    if shutil.which("pdflatex") is None:
        pytest.skip(f"pdflatex is not installed ({latex.INSTALL_HINT})")


@pytest.mark.latex
@pytest.mark.usefixtures("pdflatex")
def test_the_tables_are_typeset_and_fit_the_page(fake):
    fake.write_suite(templates=("none", "paper"), tables=("main", "calibration"))
    fake.write_failure("onceedit", "tiny/llama", "zsre", "50% of {memory} → C:\\x_y^2 ~ 中 & #1 <a|b>")
    fake.write_manifest(["main", "calibration"])
    written = write_report(fake.root, "main_table", "mini", Console(quiet=True))
    folder = fake.root / "reports" / "main_table.mini"
    assert {"main_table.pdf", "calibration_table.pdf", "time_table.pdf"} <= {path.name for path in written}
    for name in ("main", "calibration"):
        log = (folder / f"{name}_table.log").read_text()
        assert "Overfull" not in log
        assert "Missing character" not in log
        assert (folder / f"{name}_table.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.latex
@pytest.mark.usefixtures("pdflatex")
def test_a_table_that_does_not_compile_is_one_line_and_keeps_its_log(tmp_path):
    tex = tmp_path / "main_table.tex"
    tex.write_text(r"\begin{tabular}{l} \nonsense")
    with pytest.raises(UserError, match="Undefined control sequence") as refusal:
        compile_pdf(tex)
    assert "\n" not in str(refusal.value)
    assert "nonsense" in (tmp_path / "main_table.log").read_text()
    assert not (tmp_path / "main_table.pdf").exists()


@pytest.fixture
def fake_pdflatex(tmp_path, monkeypatch):
    """Install a shell script as pdflatex; it counts how often it is called."""

    def install(script):
        program = tmp_path / "bin" / "pdflatex"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(latex.shutil, "which", lambda name: str(program))
        return lambda: (tmp_path / "calls").read_text().count("called")

    return install


def test_a_pdflatex_that_hangs_is_one_line_and_is_not_tried_again(tmp_path, monkeypatch, fake_pdflatex):
    calls = fake_pdflatex("exec sleep 60")
    monkeypatch.setattr(latex, "TIMEOUT_S", 0.2)
    sources = [tmp_path / "a.tex", tmp_path / "b.tex"]
    for tex in sources:
        tex.write_text("")
    assert compile_all(sources) == ([], f"no PDF of 2 tables: pdflatex did not finish {sources[0]} within 0.2 s")
    assert calls() == 1


def test_a_failing_pdflatex_costs_the_pdfs_and_one_line_says_why_and_what_helps(fake, fake_pdflatex):
    fake.write_suite(data=("zsre",), methods=("ft-l",))
    folder = fake.root / "reports" / "main_table.mini"
    folder.mkdir(parents=True)
    (folder / "main_table.pdf").write_text("of an earlier run")
    fake_pdflatex('echo "! LaTeX Error: File \\`booktabs.sty\' not found."; exit 1')
    console = Console(record=True, width=500)
    written = write_report(fake.root, "main_table", "mini", console, lines=5)
    assert {path.suffix for path in written} == {".txt", ".tex", ".md", ".csv", ".html"}
    (line,) = (line.strip() for line in console.export_text().splitlines() if "PDF" in line)
    assert line == (
        f"no PDF of 2 tables: pdflatex failed on {folder}/main_table.tex: LaTeX Error: File `booktabs.sty' not found. "
        f"→ {latex.INSTALL_HINT}"
    )
    assert not (folder / "main_table.pdf").exists()


def test_a_table_without_groups_has_one_line_of_headings():
    table = Table("t", "T", "C", (Column("Rel"),), (Section("S", tuple(rows(0.5))),))
    assert r"\cmidrule" not in render([table], "a test")
    assert "Rel" in printed(table, 80)
