"""What every method must do, on two-layer checkpoints of two architectures, through the harness's own context."""

import contextlib
import functools
import itertools

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import CATALOGUE, reference
from harness.models.weights import weight_hash
from harness.run.cost import PhaseClock
from tests.helpers.method_bench import EDITING, METHODS, OPTIONS, Bench
from tests.helpers.small_suites import append_to_texts, small_entry, write_checkpoint, write_records


class InjectedError(Exception):
    """The failure that these tests put into the middle of an edit."""


@pytest.fixture(params=("llama", "gptj"))  # other families: test_layer_kinds
def bench_of(request, small_checkpoints, artifact_store):
    return lambda method: Bench(small_checkpoints, artifact_store, method, request.param)


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


@pytest.fixture(scope="module")
def rebuilt(small_checkpoints, tmp_path_factory):
    """A method on a model with artifacts built anew, once for all tests, and the hashes of all models right after that."""

    @functools.cache
    def build(method, architecture):
        bench = Bench(small_checkpoints, tmp_path_factory.mktemp("rebuilt"), method, architecture)
        plugin = bench.context.load_model(reference("small-llama"))
        return bench, weight_hash(bench.model.model), weight_hash(plugin.model)

    return build


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method, bench_of, rebuilt):
    first = bench_of(method)
    second, *_ = rebuilt(method, first.model.spec.architecture)
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


@pytest.mark.parametrize("method", METHODS)
def test_a_method_scores_texts_or_says_when_it_is_planned_why_it_cannot(method, small_checkpoints, artifact_store):
    bench = Bench(small_checkpoints, artifact_store, method, "llama")
    edited = bench.edit()
    if bench.editor.unscored:
        with pytest.raises(UserError):
            edited.score(bench.queries)
        return
    scores = edited.score(bench.queries)
    assert [[one.best for one in row] for row in scores] == edited.teacher_forced(bench.queries)
    assert all(one.logprob <= one.best_logprob <= 0 for row in scores for one in row)


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
def test_a_failure_in_any_forward_pass_of_an_edit_gives_the_model_back(method, bench_of):
    """The first, one in the middle, and the last."""
    bench = bench_of(method)
    state = bench.state()
    forwards = []
    counting = bench.before_each_block(lambda *_: forwards.append(1))
    bench.edit().revert()
    for handle in counting:
        handle.remove()
    if not forwards:
        assert method == "retrieval" or bench.artifacts, "an edit that never runs the model was made elsewhere"
        return
    for fail_at in sorted({1, (1 + len(forwards)) // 2, len(forwards)}):
        passes = itertools.count(1)

        def fail(*_, passes=passes, fail_at=fail_at):
            if next(passes) == fail_at:
                raise InjectedError

        failing = bench.before_each_block(fail)
        with pytest.raises(InjectedError):
            bench.edit()
        for handle in failing:
            handle.remove()
        assert bench.state() == state, f"after pass {fail_at} of {len(forwards)}"


@pytest.mark.parametrize("method", EDITING)
def test_building_an_artifact_of_a_method_leaves_every_model_as_it_was(method, bench_of, rebuilt):
    none = bench_of("none")  # loaded, and nothing built with it
    llama = none.context.load_model(reference("small-llama"))
    _, target, plugin = rebuilt(method, none.model.spec.architecture)
    assert target == weight_hash(none.model.model)
    assert plugin == weight_hash(llama.model)


@pytest.fixture(scope="module")
def appending(tmp_path_factory):
    """The small Llama, whose tokenizer appends end-of-text to every text, under the name of the one whose tokenizer does not."""
    home = tmp_path_factory.mktemp("appending")
    write_records(home / "records")
    append_to_texts(write_checkpoint(home / "llama", "llama"), "</s>")
    return home


@pytest.mark.parametrize("method", METHODS)
def test_a_tokenizer_that_appends_end_of_text_changes_no_question_no_artifact_and_no_answer(
    method, small_checkpoints, appending, artifact_store, tmp_path, monkeypatch
):
    plain = Bench(small_checkpoints, artifact_store, method, "llama")
    monkeypatch.setitem(CATALOGUE, "small-llama", small_entry("llama", str(appending / "llama")))
    bench = Bench(appending, tmp_path, method, "llama")
    assert bench.model.removed_suffix == ("</s>",)
    assert bench.queries == plain.queries
    assert bench.answers(bench.edit()) == plain.answers(plain.edit())
    for role, folder in plain.artifacts.items():
        for file in folder.glob("*.safetensors"):
            assert (bench.artifacts[role] / file.name).read_bytes() == file.read_bytes(), f"{role}/{file.name}"


@pytest.mark.parametrize("method", METHODS)
def test_scope_is_nothing_or_a_share_for_each_question(method, bench_of):
    bench = bench_of(method)
    scope = bench.edit().scope(bench.queries)
    assert scope is None or (len(scope) == len(bench.queries) and all(0 <= value <= 1 for value in scope))
