"""The steps from teacher-forced to natural answers against means over records, and that they add up."""

import json

import numpy as np
import pytest

from harness import registry
from harness.errors import UserError
from reports.frame import load_suite
from reports.layout import DASH
from reports.tables.mirage import STAGES, STEPS
from tests.helpers import fake_store


@pytest.fixture
def frame(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", tuple(dict.fromkeys(name for name, _ in STAGES)))
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",), seeds=(0, 1), tables=("mirage",))
    return load_suite(fake.root, "main_table", "mini")


def test_steps_are_differences_of_means_and_add_up_to_the_whole_drop(frame):
    tables, numbers = registry.tables.get("mirage")(frame)
    assert [table.name for table in tables] == ["mirage-rel-tiny/llama", "mirage-gen-tiny/llama"]
    cells = set(frame.cells[frame.cells["title"] == "FT-L"]["cell"])
    of_method = frame.records[frame.records["cell"].isin(cells) & (frame.records["axis"] == "rel")]
    means = [of_method.loc[of_method["protocol"] == protocol, column].mean() for protocol, column in STAGES]
    found = numbers[(numbers["method"] == "FT-L") & (numbers["axis"] == "rel")].set_index("step")["value"]
    assert found["Start"] == pytest.approx(means[0])
    assert found["End"] == pytest.approx(means[-1])
    assert found[list(STEPS)].to_numpy() == pytest.approx(np.diff(means))
    assert found["Start"] + found[list(STEPS)].sum() == pytest.approx(found["End"])
    assert (numbers["low"] <= numbers["value"]).all()
    assert (numbers["value"] <= numbers["high"]).all()


def test_records_about_one_subject_are_resampled_together(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", tuple(dict.fromkeys(name for name, _ in STAGES)))
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",))
    widths = []
    for groups in ([], [[f"r{number}" for number in range(50)]]):
        for file in (fake.root / "cells").glob("*/provenance.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"same_subject": groups}))
        _, numbers = registry.tables.get("mirage")(load_suite(fake.root, "main_table", "mini"))
        widths.append((numbers["high"] - numbers["low"]).to_numpy())
    assert (widths[0] > 0).all()
    assert widths[1] == pytest.approx(0), "with a single subject there is nothing to draw from"


def test_the_caption_names_the_template_and_does_not_claim_a_choice(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", tuple(dict.fromkeys(name for name, _ in STAGES)))
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",), templates=("none", "paper"))
    frame = load_suite(fake.root, "main_table", "mini")
    (table, *_), numbers = registry.tables.get("mirage")(frame)
    assert "Prompt template: 'none'. ±: half" in table.caption
    assert "choice of the template" not in table.caption
    assert set(numbers["cells"]) == set(frame.cells.loc[frame.cells["template"] == "none", "cell"])


def test_a_model_on_which_a_method_failed_has_a_row_of_dashes_for_it(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", tuple(dict.fromkeys(name for name, _ in STAGES)))
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",))
    fake.write_failure("ft-l", "tiny/gptj", "zsre", "out of memory")
    fake.add_planned("ft-l", "tiny/llama", "counterfact")
    fake.write_manifest()
    (first, second, *_), _ = registry.tables.get("mirage")(load_suite(fake.root, "main_table", "mini"))
    assert [row.entries[0].text == DASH for table in (first, second) for row in table.sections[0].rows] == [False, True]
    assert not first.sections[0].remarks
    assert second.sections[0].remarks == ("– ZsRE: FT-L on GPT-J-6B (mini): failed: out of memory.",)
    assert "– CounterFact: FT-L on Llama2-7B (mini): not run." in first.notes


def test_a_suite_without_the_protocols_is_told_which(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    with pytest.raises(UserError, match=r"needs protocol natural .*protocols: \[teacher_forced, generation, natural"):
        registry.tables.get("mirage")(load_suite(fake.root, "main_table", "mini"))


def test_the_figure_shows_the_score_of_every_method_at_each_stage(frame):
    figure = registry.figures.get("mirage")(frame)
    assert len(figure.axes) == 2, "reliability and generality of one model and dataset"
    assert figure.get_size_inches()[0] == 3.35
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["Unedited", "FT-L"]
    _, numbers = registry.tables.get("mirage")(frame)
    table = numbers[(numbers["axis"] == "gen") & (numbers["method"] == "FT-L")]["value"]
    drawn = figure.axes[1].containers[labels.index("FT-L")].lines[0].get_ydata()
    assert drawn == pytest.approx(np.cumsum(table.iloc[:-1]))
    assert drawn[-1] == pytest.approx(table.iloc[-1])


def test_the_figure_of_a_suite_without_the_protocols_says_which(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    figure = registry.figures.get("mirage")(load_suite(fake.root, "main_table", "mini"))
    assert "needs the protocol natural" in figure.texts[0].get_text()
