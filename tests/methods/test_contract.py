"""What every method must do, on two-layer checkpoints of the three architectures, through the harness's own context."""

import contextlib

import pytest
import torch
from rich.console import Console

from harness import registry
from harness.evaluation.probes import probe_queries
from harness.models.catalogue import CATALOGUE, reference
from harness.models.weights import weight_hash
from harness.run.context import RunContext
from harness.run.cost import PhaseClock
from harness.run.progress import ProgressBars
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from harness.suite import hparams
from tests.helpers.small_suites import ARCHITECTURES, records, small_entry, write_checkpoint, write_records

OPTIONS = {
    "none": {},
    "mend": {
        "layers": [1],
        "rank": 4,
        "edit_lr": -0.05,
        "train_batch": 2,
        "steps": 4,
        "validation": 2,
        "validate_every": 2,
        "micro_batch": 3,
    },
    "wise": {"layer": 1, "steps": 8, "contexts": 1, "save_freq": 3, "merge_freq": 6, "act_ratio": 0.5},
    "grace": {"layer": 1, "steps": 8, "batch": 4, "radius": 0.5},
    "defer": {"layer": 1, "steps": 8, "lr": 0.02},
    "rome": {
        "layers": [1],
        "v_lr": 0.5,
        "v_steps": 20,
        "v_clamp": 10.0,
        "prefixes": [[5, 1]],
        "moments": "train_prompts",
    },
    "memit": {
        "layers": [0, 1],
        "v_lr": 0.5,
        "v_steps": 20,
        "v_clamp": 10.0,
        "prefixes": [[5, 1]],
        "moment_weight": 0.1,
        "micro_batch": 3,
    },
    "ft-l": {"layer": 1, "lr": 0.02, "steps": 8, "batch": 4, "micro_batch": 2, "norm_constraint": None},
    "onceedit": {
        "plugin": "small-llama",
        "lr": 5e-3,
        "epochs": 12,
        "negatives": 1,
        "decoder": "owner",
        "alpha_gate": 0.1,
    },
}
"""Hyper-parameters of a contract test: enough to change a random model, little enough for seconds."""

METHODS = sorted(registry.methods.all())
EDITING = [name for name in METHODS if registry.find_method(name).spec.edits]


class InjectedError(Exception):
    """The failure that these tests put into the middle of an edit."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three checkpoints under names of their own, and records."""
    home = tmp_path_factory.mktemp("contract")
    write_records(home / "records")
    with pytest.MonkeyPatch.context() as patch:
        for seed, architecture in enumerate(ARCHITECTURES):
            checkpoint = write_checkpoint(home / architecture, architecture, seed)
            made = small_entry(architecture, str(checkpoint))
            patch.setitem(CATALOGUE, made.name, made)
        yield home


class Bench:
    """One method on one model with everything that it needs, its artifacts built."""

    def __init__(self, folder, store, method, architecture):
        torch.set_num_threads(1)
        cache = ArtifactCache(Store(store))
        values = hparams.resolve(method, f"tiny/{architecture}", OPTIONS[method]).values
        cls = registry.find_method(method)
        self.editor = cls(cls.Hparams.model_validate(values))
        self.context = RunContext(cache, "cpu", ProgressBars(Console(quiet=True)))
        data_ref = records(folder / "records")
        self.ref = reference(f"small-{architecture}")
        needed = self.editor.artifacts(self.ref, data_ref, 0)
        for spec in {need.key: need for root in needed.values() for need in root.closure()}.values():
            if not cache.is_built(spec):
                cache.build(spec, self.context, self.context.restart(0))
        self.artifacts = {role: cache.folder(spec) for role, spec in needed.items()}
        self.data = self.context.load_data(data_ref)
        self.model = self.context.load_model(self.ref)
        self.requests = [record.request() for record in self.data.edits]
        self.queries = [
            asked.query for asked in probe_queries(self.data, self.model.tokenizer, ["reliability", "locality"])
        ]
        self.queries = self.queries[:16]

    def edit(self, requests=None):
        self.context.restart(0)
        return self.editor.edit(self.model, requests or self.requests, self.artifacts, self.context)

    def before_each_block(self, hook):
        """Of the blocks and not of the model: many edits run only some of them."""
        blocks = (self.model.block(layer) for layer in range(self.model.n_layers))
        return [block.register_forward_pre_hook(hook) for block in blocks]

    def answers(self, edited):
        return edited.teacher_forced(self.queries), edited.generate(self.queries)

    def unedited(self):
        none = registry.find_method("none")
        return self.answers(none(none.Hparams()).edit(self.model, [], {}, self.context))

    def state(self):
        """Every bit of the model, and what training may leave behind."""
        parameters = list(self.model.model.parameters())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.model.modules())
        return (
            weight_hash(self.model.model),
            [id(parameter) for parameter in parameters],
            any(parameter.requires_grad for parameter in parameters),
            any(parameter.grad is not None for parameter in parameters),
            self.model.model.training,
            hooks,
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Artifacts are built once for all tests of this file."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(params=ARCHITECTURES)
def bench_of(request, folder, store):
    return lambda method: Bench(folder, store, method, request.param)


def test_every_method_is_tested_here():
    assert sorted(OPTIONS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_changes_what_the_model_says_and_no_edit_does_not(method, bench_of):
    bench = bench_of(method)
    before = bench.unedited()
    after = bench.answers(bench.edit())
    assert (after != before) == (method in EDITING)


@pytest.mark.parametrize("method", METHODS)
def test_revert_gives_back_every_bit_and_every_answer(method, bench_of):
    bench = bench_of(method)
    state, before = bench.state(), bench.unedited()
    edited = bench.edit()
    bench.answers(edited)
    edited.revert()
    assert bench.state() == state
    assert bench.unedited() == before
    edited.revert()
    assert bench.state() == state, "reverting twice is reverting once"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method, bench_of, tmp_path, folder):
    first = bench_of(method)
    second = Bench(folder, tmp_path, method, first.model.entry.architecture)
    ends = []
    for bench in (first, second):
        answers = bench.answers(bench.edit())
        kept = {
            f"{role}/{file.name}": file.read_bytes()
            for role, place in bench.artifacts.items()
            for file in sorted(place.glob("*.safetensors"))
        }
        ends.append((answers, weight_hash(bench.model.model), kept))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_that_came_before_and_was_reverted_leaves_no_trace(method, bench_of):
    """So a warm-up changes nothing, nor does the order of cells."""
    bench = bench_of(method)
    edited = bench.edit()
    expected, bits = bench.answers(edited), weight_hash(bench.model.model)
    edited.revert()
    torch.manual_seed(99)
    again = bench.edit()
    assert (bench.answers(again), weight_hash(bench.model.model)) == (expected, bits)


@pytest.mark.parametrize("method", METHODS)
def test_questions_one_by_one_are_answered_as_in_a_batch(method, bench_of):
    bench = bench_of(method)
    edited = bench.edit()
    forced, generated = bench.answers(edited)
    assert [edited.teacher_forced([query])[0] for query in bench.queries] == forced
    assert [edited.generate([query])[0] for query in bench.queries] == generated


class FailingClock(PhaseClock):
    """A clock whose phases fail when all the work in them is done."""

    @contextlib.contextmanager
    def phase(self, name):
        with super().phase(name):
            yield
            raise InjectedError


@pytest.mark.parametrize("method", EDITING)
def test_a_failure_at_the_end_of_an_edit_gives_the_model_back(method, bench_of):
    bench = bench_of(method)
    state, before = bench.state(), bench.unedited()
    bench.context.clock = FailingClock("cpu")
    with pytest.raises(InjectedError):
        bench.editor.edit(bench.model, bench.requests, bench.artifacts, bench.context)
    assert bench.state() == state
    assert bench.unedited() == before


@pytest.mark.parametrize("method", EDITING)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_failure_in_any_forward_pass_of_an_edit_gives_the_model_back(method, share, bench_of):
    bench = bench_of(method)
    state = bench.state()
    forwards = []
    counting = bench.before_each_block(lambda *_: forwards.append(1))
    bench.edit().revert()
    for handle in counting:
        handle.remove()
    if not forwards:
        assert bench.artifacts, "an edit that never runs the model must have been made elsewhere"
        return
    fail_at, seen = 1 + round(share * (len(forwards) - 1)), []

    def fail(*_):
        seen.append(1)
        if len(seen) == fail_at:
            raise InjectedError

    failing = bench.before_each_block(fail)
    with pytest.raises(InjectedError):
        bench.edit()
    for handle in failing:
        handle.remove()
    assert bench.state() == state


@pytest.mark.parametrize("method", EDITING)
def test_building_an_artifact_of_a_method_leaves_every_model_as_it_was(method, bench_of, folder, tmp_path):
    bench = bench_of(method)
    state = bench.state()
    plain = weight_hash(Bench(folder, tmp_path / "a", "none", "llama").model.model)
    fresh = Bench(folder, tmp_path / "b", method, bench.model.entry.architecture)
    assert fresh.state()[0] == state[0]
    assert weight_hash(fresh.context.load_model(reference("small-llama")).model) == plain


@pytest.mark.parametrize("method", METHODS)
def test_scope_is_nothing_or_a_share_for_each_question(method, bench_of):
    bench = bench_of(method)
    scope = bench.edit().scope(bench.queries)
    assert scope is None or (len(scope) == len(bench.queries) and all(0 <= value <= 1 for value in scope))
