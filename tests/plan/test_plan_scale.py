"""Ten thousand cells: the work per cell is counted, not timed."""

import io
import pickle

import pytest
from rich.console import Console

from harness import identity as canonical
from harness.plan.describe import FEW, describe
from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.jobs import waves
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.small_suites import write_suite

SEEDS = 200
HASHES_PER_CELL = 2
"""Its own id; the recipes of ft-l and none are shared, and so are hashes of shared ones."""


@pytest.fixture
def suite(home):
    return write_suite(home / "many.yaml", seeds=list(range(SEEDS)))


def test_a_cell_is_hashed_once_from_plan_to_batches_and_looked_up_only_where_there_is_something(
    suite, tmp_path, monkeypatch
):
    hashes, looks = [], []
    real_json, real_cell = canonical.canonical_json, Store.cell
    monkeypatch.setattr(canonical, "canonical_json", lambda value: hashes.append(1) or real_json(value))
    monkeypatch.setattr(Store, "cell", lambda self, folder: looks.append(folder) or real_cell(self, folder))
    made = Plan(load_suite(suite), Store(tmp_path))
    todo = jobs(made)
    batches = [batch for wave in waves(made, todo, packing=8) for batch in wave]
    cells = 2 * 2 * SEEDS
    assert sum(len(batch.jobs) for batch in batches) == len(todo) == cells + 2
    assert len({job.place for job in todo}) == len(todo)
    assert len(hashes) < HASHES_PER_CELL * cells
    assert looks == []


def test_a_batch_travels_as_its_cells_and_not_with_what_follows_from_them(suite, tmp_path):
    made = Plan(load_suite(suite), Store(tmp_path))
    todo = jobs(made)
    cell = next(job.work for job in reversed(todo) if job.work.label == "ft-l")
    again = pickle.loads(pickle.dumps(cell))
    assert set(vars(again)) < set(vars(cell))
    assert again == cell
    assert again.cell_id == cell.cell_id
    [batch] = waves(made, todo[-8:], packing=8)[-1]
    assert len(pickle.dumps(batch)) < 16_000


def test_many_cells_share_lines_of_the_plan(suite, tmp_path, capsys):
    from harness.cli import main

    assert 4 * SEEDS > FEW
    assert main(["plan", str(suite), "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 4
    assert all("200 cells" in row and "200 to do" in row for row in rows)


def test_a_sweep_over_many_settings_is_one_line_per_method_model_and_dataset(tmp_path):
    suite = write_suite(
        tmp_path / "sweep.yaml",
        models=["tiny/llama"],
        methods=["ft-l"],
        datasets=[{"name": "counterfact", "edits": 8}],
        sweep={"methods.ft-l.hparams.lr": [0.001 + number / 1e6 for number in range(FEW + 1)]},
    )
    printed = io.StringIO()
    plan = Plan(load_suite(suite, scale="mini"), Store(tmp_path / "store"))
    describe(plan, Console(file=printed, width=200))
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert len(lines) == 1
    assert f"ft-l ({FEW + 1} settings)" in lines[0]
    assert f"{FEW + 1} to do" in lines[0]
