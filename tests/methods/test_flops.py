"""FLOPs of edits that are counted against those that follow by hand from the shapes of a two-layer Llama."""

import pytest

from harness.records import EditRequest
from harness.run.flops import FlopClock
from harness.tokens import joint_queries
from methods.common.rewrites import rewrite
from methods.ft_l import FtL, FtLHparams
from methods.memit import Memit, MemitHparams
from methods.rome import Rome, RomeHparams
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_rome import MOMENTS, PREFIXES, VALUE, TinyContext, requests, write_moments, write_prefixes

STEPS = 5
VALUES = VALUE | MOMENTS | {"layers": [0], "v_steps": STEPS, "v_loss_stop": 0.0}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def facts():
    return [fact for fact in requests() if fact.record_id != "r1"]


class Shape:
    """The sizes of a model, and the FLOPs of its parts."""

    def __init__(self, model):
        config = model.model.config
        block = model.model.get_submodule(model.path(model.layout.block, 0))
        self.weights = sum(weight.numel() for weight in block.parameters() if weight.dim() == 2)
        self.attended = config.num_attention_heads * config.head_dim
        self.d, self.f, self.v = config.hidden_size, config.intermediate_size, config.vocab_size

    def block(self, rows, tokens, seen):
        """A block on so many tokens of each row, which attend to so many."""
        return 2 * self.weights * rows * tokens + self.attention(rows, tokens, seen)

    def attention(self, rows, tokens, seen):
        return 4 * rows * tokens * seen * self.attended

    def head(self, places):
        return 2 * places * self.v * self.d


def counted(method, model, facts, folder=None):
    context = TinyContext()
    context.clock = FlopClock()
    artifacts = {}
    if folder:
        artifacts = {
            "prefixes": write_prefixes(folder / "prefixes"),
            "moments": write_moments(folder / "moments", model, [0]),
        }
    method.edit(model, facts, artifacts, context).revert()
    return context.clock.flops["edit"]


def of_values(shape, rows):
    """The value optimisation: block 1 on the columns before the pivot, then on those from there on, forwards and backwards."""
    pivot = max(row.pivot for row in rows)
    behind = max(len(row.ids) - row.pivot for row in rows)
    places = sum(max(len(row.labels), 1) for row in rows)
    count, seen = len(rows), pivot + behind
    forward = shape.block(count, behind, seen) + shape.head(places)
    backward = forward + 1.5 * shape.attention(count, behind, seen)  # the kernel computes its scores again
    return shape.block(count, pivot, pivot) + STEPS * forward + (STEPS - 1) * backward


def aligned(shape, rows):
    """Block 0 on aligned rows."""
    width = max(row.pivot for row in rows) + max(len(row.ids) - row.pivot for row in rows)
    return shape.block(len(rows), width, width)


def test_ft_l(model, facts):
    shape, words = Shape(model), [EditRequest(fact.record_id, fact.prompt, "", fact.target_new, "") for fact in facts]
    queries = joint_queries(model.tokenizer, [(fact.prompt, fact.target_new) for fact in facts])
    rows, tokens = len(facts), max(len(query.prompt_ids) for query in queries)
    forward = shape.block(rows, tokens, tokens) + shape.head(rows)
    backward = shape.head(rows) + 2 * rows * tokens * shape.f * shape.d  # to the matrix, and no further
    values = {"layer": 1, "lr": 1e-3, "steps": STEPS, "batch": 8, "micro_batch": 8, "norm_constraint": None}
    values |= {"objective": "prompt_last", "weight_decay": 0.0, "loss_stop": 0.0}
    by_hand = shape.block(rows, tokens, tokens) + STEPS * (forward + backward)
    assert counted(FtL(FtLHparams(**values)), model, words) == pytest.approx(by_hand, rel=0.01)


def test_rome(model, facts, tmp_path):
    shape, by_hand = Shape(model), 0.0
    for fact in facts:
        rows = rewrite(model, fact, PREFIXES, "joint").rows
        solve = 2 * shape.f**2 + 2 * shape.f
        by_hand += aligned(shape, rows) + of_values(shape, rows) + solve
    method = Rome(RomeHparams(**VALUES, key_mode="rome"))
    assert counted(method, model, facts, tmp_path) == pytest.approx(by_hand, rel=0.01)


def test_memit(model, facts, tmp_path):
    shape, made = Shape(model), [rewrite(model, fact, PREFIXES, "joint") for fact in facts]
    rows = [row for one in made for row in one.rows]
    contexts = [row for one in made for row in one.contexts]
    width = max(row.pivot for row in contexts) + 1
    keys = shape.block(len(contexts), width, width) + 2 * len(contexts) * shape.f
    n, k, d = len(facts), shape.f, shape.d
    solve = n * k**2 + 2 * n * n * k + n**3 // 3 + 2 * n * n * d + n * k**2 + 2 * k * n * d
    by_hand = aligned(shape, rows) + of_values(shape, rows) + keys + solve
    method = Memit(MemitHparams(**VALUES, moment_weight=2.0, batch=100, micro_batch=100))
    assert counted(method, model, facts, tmp_path) == pytest.approx(by_hand, rel=0.01)
