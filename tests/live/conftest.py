"""A store with finished cells of three kinds: edited weights, a routed memory, an ensemble; and a sequence of edits."""

import pytest

from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite

FT_L = {"name": "ft-l", "layer": 1, "steps": 3, "batch": 4, "lr": 0.01}
GRACE = {"name": "grace", "layer": 1, "steps": 3}


@pytest.fixture(scope="session")
def doors(tmp_path_factory):
    """By label, the bench and the cell; `sequence` is of `ft-l` again."""
    from tests.helpers.small_suites import write_home

    home = tmp_path_factory.mktemp("doors")
    write_home(home)
    llama = {"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}
    plugin = {"name": "tiny/gptj", "weights": "pretrained", "path": str(home / "gptj")}
    common = {"models": [llama], "protocols": ["generation"]}
    once = {"name": "onceedit", "plugin": plugin, "epochs": 2, "negatives": 1}
    write_suite(home / "doors.yaml", name="doors", methods=[FT_L, GRACE, once], **common)
    schedule = {"sequential": {"block": 4, "score_at": [8]}}
    write_suite(home / "sequence.yaml", name="sequence", methods=[FT_L], schedule=schedule, **common)
    found = {}
    for name in ("doors", "sequence"):
        bench = PlanBench(home / f"{name}.yaml", home / "store")
        for cell in bench.plan.runnable:
            outcome = bench.run(cell)
            assert outcome.reason is None, outcome.reason
            found["sequence" if name == "sequence" else cell.label] = cell
    return home / "store", found
