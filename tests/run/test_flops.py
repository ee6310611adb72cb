"""Counted FLOPs against operation counts written down by hand, and against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.batching import right_padded
from harness.run.flops import FORMULAS, FlopClock, FlopCounter, UncountedError
from tests.helpers.tiny_models import tiny_model

N, M, K = 12, 7, 3


def square(*shape):
    matrix = torch.randn(*shape, N, N, generator=torch.Generator().manual_seed(0))
    return matrix @ matrix.mT + N * torch.eye(N)


SPD, RIGHT, TALL, VECTOR = square(), torch.ones(N, K), torch.ones(N, M), torch.ones(N)

OPERATIONS = {
    "cholesky": (lambda: torch.linalg.cholesky(SPD), N**3 // 3),
    "a batch of them": (lambda: torch.linalg.cholesky(square(4)), 4 * (N**3 // 3) + 4 * 2 * N**3),
    "cholesky_solve": (lambda: torch.cholesky_solve(RIGHT, SPD), 2 * N**2 * K),
    "solve_triangular": (lambda: torch.linalg.solve_triangular(SPD, RIGHT, upper=False), N**2 * K),
    "solve": (lambda: torch.linalg.solve(SPD, RIGHT), N**3 - N**3 // 3 + 2 * N**2 * K),
    "solve for a vector": (lambda: torch.linalg.solve(SPD, VECTOR), N**3 - N**3 // 3 + 2 * N**2),
    "inverse": (lambda: torch.linalg.inv(SPD), 2 * N**3),
    "svd": (lambda: torch.linalg.svd(TALL, full_matrices=False), 6 * N * M**2 + 20 * M**3),
    "eigh": (lambda: torch.linalg.eigh(SPD), 9 * N**3),
    "cdist": (lambda: torch.cdist(TALL.T, RIGHT.T), 3 * M * K * N),
    "mv": (lambda: SPD @ VECTOR, 2 * N**2),
    "dot": (lambda: VECTOR @ VECTOR, 2 * N),
    "einsum": (lambda: torch.einsum("c,nck->nk", VECTOR, torch.ones(M, N, K)), 2 * N * M * K),
    "in place": (lambda: torch.zeros(N, K).addmm_(SPD, RIGHT), 2 * N * N * K),
    "nothing to multiply": (lambda: torch.linalg.vector_norm(SPD + SPD.relu().softmax(-1)), 0),
}


@pytest.mark.parametrize("what", OPERATIONS)
def test_an_operation_costs_what_the_textbook_says(what):
    run, flops = OPERATIONS[what]
    with FlopCounter() as counter:
        run()
    assert counter.flops == flops


@pytest.mark.parametrize(
    "run",
    [
        lambda: torch.linalg.lstsq(SPD, RIGHT),
        lambda: torch.linalg.eig(SPD),
        lambda: torch.fft.fft(VECTOR),
        lambda: torch.linalg.matrix_exp(SPD),
    ],
)
def test_a_heavy_operation_without_a_formula_is_an_error(run):
    with pytest.raises(UncountedError, match="has no formula"), FlopCounter():
        run()


@pytest.mark.parametrize("architecture", ["llama", "gptj", "gemma2"])
def test_a_forward_pass_costs_two_flops_per_parameter_and_token_and_its_attention(architecture):
    model = tiny_model(architecture)
    batch = right_padded([range(3, 14), range(5, 14)], model.device)
    with FlopCounter() as counter:
        model.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT)
    rows, tokens = batch.ids_BT.shape
    config, head = model.model.config, model.model.get_output_embeddings().weight
    embedded = {id(head), id(model.model.get_input_embeddings().weight)}
    matrices = [weight for weight in model.model.parameters() if weight.dim() == 2 and id(weight) not in embedded]
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * 2 * rows * config.num_attention_heads * heads * tokens**2 * config.num_hidden_layers
    expected = 2 * (sum(weight.numel() for weight in matrices) + head.numel()) * rows * tokens + attention
    assert counter.flops == pytest.approx(expected, rel=0.01)


def test_counts_are_those_of_torchs_counter():
    model = tiny_model("llama")
    ids_BT = torch.arange(3, 14)[None]

    def forward_and_backward():
        for parameter in model.model.parameters():
            parameter.requires_grad_(True)
        model.model(input_ids=ids_BT, labels=ids_BT).loss.backward()

    with FlopCounterMode(display=False, custom_mapping=dict(FORMULAS)) as theirs:
        forward_and_backward()
    with FlopCounter() as ours:
        forward_and_backward()
    assert ours.flops == theirs.get_total_flops() > 0


def test_a_clock_adds_up_by_phase_and_counts_nothing_outside():
    clock = FlopClock()
    for phase in ("edit", "attach", "edit"):
        with clock.phase(phase):
            _ = SPD @ VECTOR
            assert clock.so_far == 2 * N**2
        _ = SPD @ SPD
    assert clock.flops == {"edit": 4 * N**2, "attach": 2 * N**2}


def test_counting_changes_no_result():
    run = OPERATIONS["svd"][0]
    with FlopCounter():
        counted = run()
    assert all(torch.equal(a, b) for a, b in zip(counted, run(), strict=True))
