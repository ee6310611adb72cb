"""Time, memory and growth of the weights along a sequence, against numbers written by hand."""

import json

import pytest

from harness import registry
from reports.frame import load_suite
from reports.layout import DASH

MIB = 2**20
ENDS = (10, 20, 40, 60, 80, 100)
SCHEDULE = {"kind": "sequential", "block": 20, "score_at": [10, 100]}


def blocks(seconds=(1, 1, 2, 2, 2, 4), peaks=(50, 40, 30, 30, 30, 40), phase="edit", **changed):
    """Six blocks; the first and the second are half as large as the others."""
    found = [
        {
            "edits": edits,
            "phases_s": {phase: second} if phase else {},
            "citable": True,
            "memory_bytes": edits * MIB,
            "peak_memory_bytes": peak * MIB,
            "norm_drift": edits / 100,
            **changed,
        }
        for edits, second, peak in zip(ENDS, seconds, peaks, strict=True)
    ]
    return [{key: value for key, value in block.items() if value is not None} for block in found]


@pytest.fixture
def written(fake):
    """Write a cell with these blocks."""

    def write(method, of_cell, cost=None, **settings):
        cost = {"blocks": of_cell, **(cost or {})}
        return fake.write_cell(method, "tiny/llama", "zsre", records=100, schedule=SCHEDULE, cost=cost, **settings)

    return write


def table(fake, name="sequence_cost"):
    """The table of the only model, its rows by title, and the numbers."""
    fake.write_manifest([name])
    (found,), numbers = registry.tables.get(name)(load_suite(fake.root, "main_table", "mini"))
    return found, {row.title: row.entries for row in found.sections[0].rows}, numbers


def test_a_row_is_time_memory_and_growth_by_position(fake, written):
    written("none", blocks(phase=None, norm_drift=0.0), {"edit_actions": []})
    written("ft-l", blocks())
    found, rows, _ = table(fake)
    assert [(column.group, column.title) for column in found.columns] == [
        *(("ms per edit", title) for title in ("first", "middle", "last", "last/first")),
        *(("MiB at most", title) for title in ("first", "last", "all")),
        *(("Growth", title) for title in ("10", "100")),
    ]
    assert [entry.text for entry in rows["FT-L"]] == ["100", "100", "200", "2.00", "50", "40", "50", "0.100", "1.00"]
    assert [entry.text for entry in rows["Unedited"]] == [*[DASH] * 4, "50", "40", "50", "0", "0"]


def test_a_fifth_counts_each_edit_once(fake, written):
    """Of blocks of 1, 1, 2, 2 ... edits, those of two count twice."""
    ends = [1, 2, *range(4, 38, 2)]
    spent = [{**block, "edits": end} for end, block in zip(ends, blocks((1,) * 6) * 4, strict=False)]
    written("ft-l", spent)
    _, rows, _ = table(fake)
    assert rows["FT-L"][0].value == pytest.approx(1000 * 3 / 4)
    assert rows["FT-L"][2].value == pytest.approx(1000 * 3 / 6)


@pytest.fixture
def built(fake, written):
    """Write a cell whose edits are artifacts, with the cost of each; one without a cost has been removed since."""

    def write(*costs):
        folder = written("onceedit", blocks(phase="attach"))
        keys = {f"plugin_edit/{edits}": f"key-{edits}" for edits in ENDS}
        for key, cost in zip(keys.values(), costs, strict=False):
            artifact = fake.root / "artifacts" / "plugin-edit" / key
            artifact.mkdir(parents=True)
            (artifact / "cost.json").write_text(json.dumps({"device_class": "cpu", "peak_memory_bytes": MIB, **cost}))
        origin = json.loads((folder / "provenance.json").read_text())
        needed = {"threshold": "of all blocks", **keys}
        (folder / "provenance.json").write_text(json.dumps({**origin, "artifacts": needed}))

    return write


def test_artifacts_of_a_block_count_in_its_time_and_memory(fake, built):
    built(*({"phases_s": {"edit": 3.0 + number}, "peak_memory_bytes": 45 * MIB} for number in range(5)))
    _, rows, numbers = table(fake)
    assert list(numbers["ms_per_edit"][:-1]) == pytest.approx([400, 500, 350, 400, 450])
    assert list(numbers["peak_memory_bytes"][:-1] / MIB) == [50, 45, 45, 45, 45]
    assert [entry.text for entry in rows["OnceEdit"]] == [
        "400",
        "350",
        *[DASH] * 2,
        "50",
        "100",
        "100",
        "0.100",
        "1.00",
    ]


def test_no_ratio_of_times_on_different_devices(fake, built):
    built(*({"phases_s": {"edit": 3.0}, "device_class": f"cuda: {end == 100}"} for end in ENDS))
    _, rows, _ = table(fake)
    assert [entry.text for entry in rows["OnceEdit"][:4]] == ["400", "250", "350", DASH]


def test_cells_from_before_peaks_were_recorded_show_what_they_held(fake, written):
    written("ft-l", blocks(peak_memory_bytes=None))
    found, rows, _ = table(fake)
    assert [(entry.text, entry.note) for entry in rows["FT-L"][4:7]] == [("10", "‡"), ("100", "‡"), ("100", "‡")]
    assert any(note.startswith("‡") for note in found.notes)


def test_cells_from_before_blocks_were_recorded_have_dashes(fake, written):
    written("ft-l", [])
    _, rows, numbers = table(fake)
    assert {entry.text for entry in rows["FT-L"]} == {DASH}
    assert numbers.empty


def test_times_of_an_interrupted_sequence_are_marked(fake, written):
    written("ft-l", blocks(), {"citable": False, "shared_by": 2})
    found, rows, _ = table(fake)
    assert [entry.note for entry in rows["FT-L"]] == ["*"] * 4 + [""] * 5
    assert "* not citable: the measurement was interrupted" in found.notes
    assert "Measured with 2 processes on one device: not to be quoted." in found.notes


def test_seeds_are_averaged_and_the_numbers_have_every_block(fake, written):
    for seed, second in enumerate((1, 3)):
        written("ft-l", blocks((second,) * 6), seed=seed)
    _, rows, numbers = table(fake)
    assert rows["FT-L"][0].value == pytest.approx(200)
    assert list(numbers.groupby("cell").size()) == [6, 6]
    assert list(numbers["first_edit"][:6]) == [1, 11, 21, 41, 61, 81]
    assert set(numbers["cell"]) == set(fake.cells)


def test_a_missing_cell_is_a_dash_with_its_reason(fake, written):
    written("ft-l", blocks())
    fake.write_failure("onceedit", "tiny/llama", "zsre", "it rained", records=100, schedule=SCHEDULE)
    found, rows, _ = table(fake)
    assert {entry.text for entry in rows["OnceEdit"]} == {DASH}
    assert any("it rained" in remark for remark in found.sections[0].remarks)


def test_the_figure_has_a_line_per_method_for_time_and_for_growth(fake, written):
    written("none", blocks(phase=None), {"edit_actions": []})
    written("ft-l", blocks())
    written("ft-l", blocks((2,) * 6, norm_drift=0.0), label="other")
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    time, growth = registry.figures.get("sequence_cost")(frame).axes
    assert [line.get_label() for line in time.get_lines()] == ["FT-L", "other"]
    assert list(time.get_lines()[0].get_xdata()) == list(ENDS)
    assert list(time.get_lines()[0].get_ydata()) == pytest.approx([100, 100, 100, 100, 100, 200])
    assert list(growth.get_lines()[1].get_ydata()) == [0.0] * 6
