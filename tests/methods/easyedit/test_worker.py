"""The process of an adapter: what goes in and out, and what happens when it fails. None of EasyEdit's code is needed."""

import copy
import os
import signal
import threading
import time

import pytest
import torch

from harness.api import Hparams
from harness.errors import InsufficientMemoryError, UserError
from harness.models import weights
from harness.models.catalogue import ModelRef
from harness.models.edited import WeightEditedModel
from harness.records import EditRequest
from harness.registry import MethodSpec
from harness.run.jobs import prepare_torch
from methods.easyedit import process
from methods.easyedit.editor import WeightMethod, Without, WrapperMethod, started
from methods.easyedit.process import WorkerError
from tests.helpers.fake_checkout import pinned, write_checkout
from tests.helpers.tiny_edits import Context, queries_of, requests_of

FACTS = [("The capital of France is", "Rome"), ("The mother tongue of Danielle Darrieux is", "English and French")]
REQUESTS = requests_of(FACTS)
CHANGED = "model.layers.1.mlp.down_proj.weight"


class NoHparams(Hparams, Without):
    pass


class Adding(WeightMethod):
    spec = MethodSpec("adding", title="Adding", family="weights", version=1)
    Hparams = NoHparams
    inside = "in_worker:AddOne"

    def check(self, target):
        pass

    def options(self, model):
        return {}


class Wrapping(Adding, WrapperMethod):
    inside = "in_worker:Doubled"
    result = WrapperMethod.result


class Breaking(Adding):
    inside = "in_worker:Breaks"


class Exhausting(Adding):
    inside = "in_worker:RunsOut"


class Sleeping(Adding):
    inside = "in_worker:Sleeps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("home") / "checkout")


@pytest.fixture(autouse=True)
def _checkout(folder, monkeypatch):
    pinned(folder, monkeypatch)


@pytest.fixture(scope="module")
def model(small_model):
    return small_model("llama")


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def editor_of(kept, model):
    """Editors that take over each other's worker, as long as it lives: starting one takes seconds."""

    def made(cls, **hparams):
        editor = cls(NoHparams(**hparams))
        editor._worker, editor._loaded = kept.get("worker"), kept.get("loaded")
        editor.worker(model)
        kept["worker"], kept["loaded"] = editor._worker, editor._loaded
        return editor

    return made


def edit(editor, model, requests=REQUESTS):
    return editor.edit(model, requests, {}, Context())


def test_the_weights_that_the_worker_changed_are_installed_and_taken_back_bit_for_bit(editor_of, model):
    before, start = weights.weight_hash(model.model), model.model.get_parameter(CHANGED).clone()
    edited = edit(editor_of(Adding), model)
    difference = model.model.get_parameter(CHANGED) - start
    assert float(difference[0, 0]) == len(REQUESTS)
    assert int(difference.count_nonzero()) == 1
    edited.revert()
    assert weights.weight_hash(model.model) == before


def test_reverting_the_first_of_several_edits_reverts_what_later_ones_may_change(editor_of, model):
    """As in a sequence: each edit goes on from the weights as they are, and only the first is reverted."""
    before, editor = weights.weight_hash(model.model), editor_of(Adding)
    first = edit(editor, model, [])
    pid = editor.worker(model).pid
    edit(editor, model, REQUESTS[:1])
    edit(editor, model, REQUESTS[:1])
    assert float(model.model.get_parameter(CHANGED)[0, 0]) != 0
    assert editor.worker(model).pid == pid
    first.revert()
    assert weights.weight_hash(model.model) == before


def test_the_worker_has_the_weights_of_the_model_whatever_was_done_to_it(editor_of, model):
    editor, names = editor_of(Adding), (CHANGED, "model.norm.weight")
    snapshot = weights.Snapshot(model.model, names)
    with snapshot.restored_on_error(), torch.no_grad():
        for name in names:
            model.model.get_parameter(name).add_(1)
        there = editor.worker(model).call("run", "in_worker:weights_of")
        assert there == weights.weight_hash(model.model)
    snapshot.restore()
    assert there != weights.weight_hash(model.model)


def test_a_half_precision_model_is_edited_in_float32_and_keeps_float32_weights(small_model):
    """In blocks: the second starts from what the first has left, which bfloat16 could not hold."""
    half, editor = small_model("llama", "bfloat16"), Adding(NoHparams())
    before, start = weights.weight_hash(half.model), half.model.get_parameter(CHANGED).float()
    assert editor.worker(half).call("run", "in_worker:weights_of") == weights.weight_hash(
        copy.deepcopy(half.model).float()
    )
    first = edit(editor, half)
    edit(editor, half, REQUESTS[:1])
    value = half.model.get_parameter(CHANGED)
    expected = start[0, 0] + 2 + 1
    assert value.dtype == torch.float32
    assert value[0, 0] == expected != expected.bfloat16()
    assert half.model.get_parameter("lm_head.weight").dtype == torch.bfloat16
    assert WeightEditedModel(half).teacher_forced(queries_of(half, FACTS))
    first.revert()
    assert weights.weight_hash(half.model) == before
    editor.stop()


def test_the_wrapper_of_a_half_precision_model_answers_in_float32(small_model):
    half, editor = small_model("llama", "bfloat16"), Wrapping(NoHparams())
    edited = edit(editor, half)
    assert editor.worker(half).call("run", "in_worker:dtypes_of") == {"torch.float32"}
    edited.revert()
    editor.stop()


def test_the_precision_is_in_the_identity_and_a_known_difference_only_where_it_is_another():
    named = {dtype: ModelRef("tiny/llama", "pretrained", dtype=dtype) for dtype in ("float32", "bfloat16")}
    editor = Adding(NoHparams())
    assert (editor.identity_on(named["float32"]), editor.differences_on(named["float32"])) == ({}, ())
    assert editor.identity_on(named["bfloat16"]) == {"precision": "float32"}
    assert editor.differences_on(named["bfloat16"]) == (WeightMethod.wider,)


def test_every_edit_starts_from_the_cell_s_seed_and_from_weights_that_may_be_trained(editor_of, model):
    editor = editor_of(Adding)
    figures = []
    for _ in range(2):
        edited = edit(editor, model)
        figures.append({name: edited.diagnostics()[name] for name in ("random", "numpy", "torch", "trainable")})
        edited.revert()
    assert figures[0] == figures[1]
    assert figures[0]["trainable"] == 1
    edited = edit(editor_of(Adding, without=("trainable-again",)), model)
    assert edited.diagnostics()["trainable"] == 0
    edited.revert()


def test_nothing_of_the_worker_reaches_this_process(editor_of, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    expected, environment = torch.rand(3), dict(os.environ)
    torch.manual_seed(5)
    editor = editor_of(Adding)
    edit(editor, model).revert()
    worker = editor.worker(model)
    assert worker.call("run", "in_worker:environment", "LEAKED") == "yes"
    assert dict(os.environ) == environment
    assert torch.equal(torch.rand(3), expected)
    assert worker.call("run", "in_worker:working_directory") == str(worker.folder)
    assert list(tmp_path.iterdir()) == []


def test_the_worker_computes_with_the_settings_of_a_run(editor_of, model):
    """Its seconds stand beside ours: neither may fill memory that nothing reads."""
    prepare_torch(1)
    try:
        worker = started(model)
        expected = {"threads": 1, "deterministic": True, "fills": torch.utils.deterministic.fill_uninitialized_memory}
        assert worker.call("run", "in_worker:settings_of_torch") == expected
    finally:
        torch.use_deterministic_algorithms(False)
    assert not expected["fills"]


def test_a_wrapper_is_asked_in_the_worker_row_by_row(editor_of, model):
    """It rolls the vocabulary by one; its answers are otherwise those of the model, one row at a time."""
    queries = queries_of(model, FACTS)
    edited = edit(editor_of(Wrapping), model)
    vocabulary = model.model.config.vocab_size
    plain = WeightEditedModel(model)
    expected = [[(token + 1) % vocabulary for token in plain.teacher_forced([query])[0]] for query in queries]
    assert edited.teacher_forced(queries) == expected
    first = [(plain.generate([query])[0][0] + 1) % vocabulary for query in queries]
    answers = edited.generate(queries)
    assert [answer[0] for answer in answers] == first
    assert [len(answer) for answer in answers] == [len(query.target_ids) for query in queries]
    assert edited.scope(queries) == [4.0, 4.0]
    assert edited.diagnostics()["requests"] == len(REQUESTS)
    edited.revert()


def test_an_exception_is_one_line_with_the_worker_s_words_as_a_note(editor_of, model):
    before, editor = weights.weight_hash(model.model), editor_of(Breaking)
    with pytest.raises(WorkerError) as caught:
        edit(editor, model)
    assert str(caught.value) == "EasyEdit failed in 'apply': ZeroDivisionError: no such luck"
    notes = "\n".join(caught.value.__notes__)
    assert "in_worker.py" in notes
    assert "about to fail" in notes
    assert weights.weight_hash(model.model) == before


def test_after_an_exception_the_next_edit_gets_a_fresh_worker(editor_of, model):
    editor = editor_of(Breaking)
    with pytest.raises(WorkerError):
        edit(editor, model)
    editor.inside = Adding.inside
    edited = edit(editor, model)
    assert edited.diagnostics()["trainable"] == 1
    edited.revert()


def test_what_a_user_can_mend_stays_so(editor_of, model):
    worker = editor_of(Adding).worker(model)
    with pytest.raises(UserError, match="nothing there → bring it"):
        worker.call("run", "in_worker:users_mistake")
    assert not worker.is_alive


def test_a_worker_that_runs_out_of_gpu_memory_is_told_from_one_that_fails(editor_of, model):
    said = r"EasyEdit ran out of GPU memory in 'apply': CUDA out of memory\. Tried to allocate 2 GiB"
    with pytest.raises(InsufficientMemoryError, match=said) as caught:
        edit(editor_of(Exhausting), model)
    assert caught.value.memory == "GPU"


def test_a_worker_that_is_killed_while_the_kernel_kills_for_memory_has_too_little_of_it(
    editor_of, model, tmp_path, monkeypatch
):
    """It says so of a machine, and not of a process; without it, nobody knows who has killed the worker."""
    worker = editor_of(Adding).worker(model)
    vmstat = tmp_path / "vmstat"
    vmstat.write_text(f"nr_free_pages 77\noom_kill {worker._kills + 1}\n")
    monkeypatch.setattr(process, "VMSTAT", vmstat)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        InsufficientMemoryError, match="was killed by SIGKILL in 'run', and this machine has run out"
    ) as error:
        worker.call("run", "in_worker:working_directory")
    assert error.value.memory == "RAM"


def test_a_worker_survives_what_slurm_sends_to_all_processes_before_the_end_of_a_job(editor_of, model):
    worker = editor_of(Adding).worker(model)
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        os.kill(worker.pid, number)
    assert worker.call("run", "in_worker:working_directory") == str(worker.folder)


def test_a_worker_that_is_killed_in_the_middle_fails_the_edit_at_once(editor_of, model):
    before, editor = weights.weight_hash(model.model), editor_of(Sleeping)
    worker = editor.worker(model)
    killer = threading.Timer(1, os.kill, (worker.pid, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    with pytest.raises(WorkerError, match="was killed by SIGKILL in 'apply'"):
        edit(editor, model)
    assert time.monotonic() - start < 30
    assert weights.weight_hash(model.model) == before
    assert not worker.folder.exists()


def test_a_worker_ends_with_its_editor_also_in_the_middle_of_something(editor_of, model):
    editor = Sleeping(NoHparams())
    worker = editor.worker(model)
    process, folder = worker._process, worker.folder
    worker._connection.send(("begin", (Sleeping.inside, {}, (), {}, 0)))
    worker._connection.send(("apply", ([EditRequest("0", "a", "", "b", "")],)))
    del worker, editor
    assert process.wait(timeout=10) in {-signal.SIGKILL, 0}  # 0: it had yet to come to it, and found nobody to answer
    assert not folder.exists()


def test_a_worker_ends_when_its_caller_is_gone(editor_of, model):
    worker = started(model)
    worker._connection.send(("begin", (Sleeping.inside, {}, (), {}, 0)))
    worker._connection.send(("apply", ([],)))
    time.sleep(1)
    worker._connection.close()  # as the system does with the files of a process that was killed
    assert worker._process.wait(timeout=30) == 0
    assert not worker.folder.exists()
