"""A memory that is extended block by block is the one that a single edit makes."""

import pytest
import torch
from test_contract import Bench, folder, store  # noqa: F401 (fixtures)

from harness.run.sequence import Chain


@pytest.mark.parametrize("method", ["wise"])
def test_blocks_make_the_memory_that_one_edit_makes(method, folder, store):  # noqa: F811
    bench = Bench(folder, store, method, "gptj")
    bench.context.restart(0)
    whole = bench.edit()
    with Chain(bench.editor, bench.model, bench.artifacts, bench.context) as chain:
        for start in range(0, len(bench.requests), 3):
            chain.go_on(bench.requests[start : start + 3])
        state, wanted = chain.state, whole.state()
        assert state.keys() == wanted.keys()
        for name in state.keys() - {"figures"}:  # the loss of the last block is not that of all
            torch.testing.assert_close(state[name], wanted[name], rtol=1e-3, atol=1e-4)
        assert bench.answers(chain.edited) == bench.answers(whole)
