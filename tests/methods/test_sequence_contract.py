"""What every method that edits in sequence must do: go on from what was kept, on the disk and in another process, bit for bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import registry
from harness.run.sequence import Chain
from tests.helpers.method_bench import METHODS, OPTIONS, Bench
from tests.helpers.small_suites import records

SEQUENTIAL = [name for name in METHODS if registry.find_method(name).edits_in_sequence() and name in OPTIONS]
CUT = 4
"""Edits in the first block; the others are in the second."""
STEP = 3
"""Edits in each block of a longer sequence."""


def halves(n):
    return [CUT, n]


def steps(n):
    return [*range(STEP, n, STEP), n]


@pytest.fixture
def bench_of(small_checkpoints, artifact_store):
    """Each call is a process of its own; the artifacts are shared."""
    n = records(small_checkpoints / "records").edits
    return lambda method, blocks=halves: Bench(small_checkpoints, artifact_store, method, "gptj", ends=blocks(n))


def chain_of(bench):
    bench.context.restart(0)
    return Chain(bench.editor, bench.model, bench.artifacts, bench.context)


def written(tensors, file):
    save_file({name: value.cpu().clone() for name, value in tensors.items()}, file)
    return load_file(file)


def bits(tensors):
    flat = {name: value.reshape(-1).view(torch.uint8).tolist() for name, value in tensors.items()}
    return {name: (value.dtype, value.shape, flat[name]) for name, value in tensors.items()}


def standing(bench, chain):
    """Everything that a model in a sequence is."""
    weights = chain.weights()
    return (
        bench.answers(chain.edited),
        chain.edited.scope(bench.queries),
        weights.hash,
        bits(weights.changed),
        bits(chain.state),
    )


@pytest.mark.parametrize("method", SEQUENTIAL)
def test_a_sequence_that_goes_on_from_a_file_is_one_that_was_never_interrupted(method, bench_of, tmp_path):
    bench = bench_of(method)
    with chain_of(bench) as chain:
        chain.go_on(bench.requests[:CUT])
        weights, state = (
            written(chain.weights().changed, tmp_path / "weights"),
            written(chain.state, tmp_path / "state"),
        )
        half = standing(bench, chain)
        chain.go_on(bench.requests[CUT:])
        whole, figures = standing(bench, chain), dict(chain.edited.diagnostics())
    again = bench_of(method)
    with chain_of(again) as chain:
        chain.resume(weights, state)
        assert standing(again, chain) == half
        chain.go_on(again.requests[CUT:])
        assert standing(again, chain) == whole
        assert dict(chain.edited.diagnostics()) == figures


@pytest.mark.parametrize("method", SEQUENTIAL)
def test_a_sequence_gives_the_model_back_bit_for_bit(method, bench_of):
    bench = bench_of(method, steps)
    state, before, kept = bench.state(), bench.unedited(), []
    with chain_of(bench) as chain:
        for start in range(0, len(bench.requests), STEP):
            chain.go_on(bench.requests[start : start + STEP])
            kept.append(
                [{name: value.clone() for name, value in of.items()} for of in (chain.weights().changed, chain.state)]
            )
        bench.answers(chain.edited)
    assert bench.state() == state
    assert bench.unedited() == before
    with chain_of(bench) as chain:
        chain.resume(*kept[0])
        chain.go_on(bench.requests[STEP : 2 * STEP])
    assert bench.state() == state


@pytest.mark.parametrize("method", SEQUENTIAL)
def test_a_second_block_changes_what_the_first_one_left(method, bench_of):
    bench = bench_of(method)
    with chain_of(bench) as chain:
        chain.go_on(bench.requests[:CUT])
        first = standing(bench, chain)
        chain.go_on(bench.requests[CUT:])
        assert (standing(bench, chain) != first) == registry.find_method(method).spec.edits


@pytest.mark.parametrize("method", ["wise"])
def test_blocks_make_the_memory_that_one_edit_makes(method, bench_of):
    bench = bench_of(method, steps)
    whole = bench.edit()
    with chain_of(bench) as chain:
        for start in range(0, len(bench.requests), STEP):
            chain.go_on(bench.requests[start : start + STEP])
        state, wanted = chain.state, whole.state()
        assert state.keys() == wanted.keys()
        for name in state.keys() - {"diagnostics"}:  # the loss of the last block is not that of all
            torch.testing.assert_close(state[name], wanted[name], rtol=1e-3, atol=1e-4)
        assert bench.answers(chain.edited) == bench.answers(whole)
