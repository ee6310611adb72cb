"""Edits in sequence, in this process: what blocks do, what is kept of them, and how a second run goes on from it."""

import dataclasses
import json
import shutil
import weakref
from types import SimpleNamespace
from typing import ClassVar

import pandas as pd
import pytest
import torch

from harness import registry
from harness.api import EditedModel, Hparams, Method
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fluency import norm_drift, norms
from harness.evaluation.metrics import aggregate
from harness.evaluation.protocols import OWN
from harness.evaluation.unedited import UneditedOutputs
from harness.models.edited import WeightEditedModel
from harness.models.weights import weight_hash
from harness.records import Answer
from harness.registry import MethodSpec
from harness.run.checkpoint import Checkpoint
from harness.run.sequence import Chain
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from methods.ft_l import FtL
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite

EDITS, BLOCKS = 8, [(0, 2), (2, 3), (3, 4), (4, 6), (6, 8)]
SCHEDULE = {"sequential": {"block": 2, "score_at": [2, 3, 8]}}
FILES = ("records.parquet", "curve.parquet", "metrics.json", "cell.json")
FT_L = {"name": "ft-l", "layer": 1, "steps": 8, "batch": 4, "lr": 0.01}


class Notebook(Method):
    """A memory: writes down what it is told, with a random number for each edit, and says it again word for word."""

    spec = MethodSpec("notebook", title="Notebook", family="memory", version=1)
    Hparams = Hparams
    calls: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, hparams):
        self.hparams = hparams

    def artifacts(self, target, data, seed):
        return {}

    def edit(self, model, requests, artifacts, context):
        Notebook.calls.append(("edit", len(requests)))
        generator = torch.Generator().manual_seed(context.seed)
        return self._written(model, [], requests, torch.zeros(0), generator, context)

    def extend(self, model, state, requests, artifacts, context):
        Notebook.calls.append(("extend", len(requests)))
        assert all(value.is_contiguous() for value in state.values())
        generator = torch.Generator()
        generator.set_state(state["generator"].cpu())
        notes = json.loads(bytes(state["notes"].tolist()))
        return self._written(model, notes, requests, state["noise"][:, 0], generator, context)

    def _written(self, model, notes, requests, noise, generator, context):
        with context.clock.phase("edit"):
            notes = [*notes, *((request.prompt, request.target_new) for request in requests)]
            noise = torch.cat([noise, torch.rand(len(requests), generator=generator)])
        return Written(model, notes, noise, generator)


class Written(WeightEditedModel):
    """What a notebook makes of a model."""

    def __init__(self, model, notes, noise, generator):
        super().__init__(model, diagnostics={"notes": float(len(notes)), "noise": float(noise.sum())})
        self.notes, self.noise, self.generator = dict(map(tuple, notes)), noise, generator

    def teacher_forced(self, queries):
        answers = super().teacher_forced(queries)
        known = [self.notes.get(query.prompt) == query.target for query in queries]
        return [list(q.target_ids) if is_known else a for q, a, is_known in zip(queries, answers, known, strict=True)]

    def state(self):
        text = json.dumps(list(self.notes.items())).encode()
        return {
            "notes": torch.tensor(list(text), dtype=torch.uint8),
            "noise": torch.stack([self.noise, self.noise]).T,  # not laid out as a file would give it back
            "generator": self.generator.get_state(),
        }


@pytest.fixture(scope="module")
def home(home):
    write_suite(home / "sequence.yaml", methods=["none", FT_L], schedule=SCHEDULE, models=_models(home), eval_batch=3)
    return home


def _models(folder):
    return [{"name": "tiny/llama", "weights": "pretrained", "path": str(folder / "llama")}]


@pytest.fixture(scope="module", autouse=True)
def _notebook():
    registry.methods.add("notebook", Notebook, __name__)
    yield
    registry.methods.discard("notebook")


@pytest.fixture(autouse=True)
def _no_calls():
    Notebook.calls.clear()


class Bench(PlanBench):
    """A process: its own models in memory, the store that it is given."""

    def cell(self, label):
        if label == "notebook":
            return dataclasses.replace(self.cell("ft-l"), method=Notebook.spec, label=label, hparams={}, sources={})
        return super().cell(label)

    def finish(self, label):
        """Run a cell that must not fail; its folder."""
        assert self.run(self.cell(label)).reason is None
        return self.folder(self.cell(label))

    def checkpoint(self, label):
        return Checkpoint(self.store.checkpoint(self.cell(label).folder))

    def bytes(self, label):
        return {name: (self.folder(self.cell(label)).path / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def built(home, tmp_path_factory):
    """A store with the artifacts of the suite."""
    store = tmp_path_factory.mktemp("built")
    Bench(home / "sequence.yaml", store)
    return store


@pytest.fixture
def process(home, built, tmp_path):
    """Each call is another process on the same store."""
    shutil.copytree(built, tmp_path / "store")
    return lambda: Bench(home / "sequence.yaml", tmp_path / "store")


@pytest.fixture(scope="module")
def uninterrupted(home, built, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole") / "store"
    shutil.copytree(built, store)
    bench = Bench(home / "sequence.yaml", store)
    return {label: (bench.finish(label), bench.bytes(label))[1] for label in ("none", "ft-l", "notebook")}


class Killed(BaseException):
    """Ends a run as a signal does: nothing catches it."""


@pytest.fixture
def killed_at(monkeypatch):
    """Run a cell until something of its sequence has been kept so many times."""

    def run(bench, label, moment, after):
        original, count = getattr(Checkpoint, moment), []

        def keep(self, *arguments):
            original(self, *arguments)
            count.append(arguments)
            if len(count) == after:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, moment, keep)
            with pytest.raises(Killed):
                bench.run(bench.cell(label))

    return run


def test_a_sequence_of_a_weight_method_is_its_edit_again_and_again_on_the_model_as_it_is(process, monkeypatch):
    bench = process()
    cell = bench.cell("ft-l")
    model, data = bench.context.load_model(cell.model), bench.context.load_data(cell.data)
    requests = [record.request() for record in data.edits]
    edits, by_hand, unedited = [], [], norms(model.model.named_parameters())
    for start, end in BLOCKS:
        edits.append(cell.instance().edit(model, requests[start:end], {}, bench.context))
        drift = norm_drift(unedited, norms(model.model.named_parameters()))
        by_hand.append((end, weight_hash(model.model), drift))
    for edited in reversed(edits):
        edited.revert()
    assert len({weights for _, weights, _ in by_hand}) == len(BLOCKS)

    seen = []
    original = Checkpoint.keep
    monkeypatch.setattr(Checkpoint, "keep", lambda *a: (seen.append(a[1]), original(*a))[1])
    bench.finish("ft-l")
    assert [(progress.edits, progress.weights, progress.blocks[-1].norm_drift) for progress in seen] == by_hand


def test_a_memory_is_extended_by_what_it_kept_and_never_edited_anew(process):
    bench = process()
    bench.finish("notebook")
    warm_up, *blocks = Notebook.calls
    assert warm_up == ("edit", 1)
    assert blocks == [("edit", 2), ("extend", 1), ("extend", 1), ("extend", 2), ("extend", 2)]
    metrics = bench.folder(bench.cell("notebook")).read("metrics.json")
    assert metrics["diagnostics"]["notes"] == EDITS
    assert [metrics["curve"][point]["teacher_forced"]["reliability"]["score"] for point in "238"] == [1.0, 1.0, 1.0]


def test_at_each_point_all_edits_so_far_are_scored_and_nothing_else(process):
    bench = process()
    path = bench.finish("ft-l").path
    order = [record.id for record in bench.context.load_data(bench.cell("ft-l").data).edits]
    rows = pd.read_parquet(path / "curve.parquet")
    assert list(rows.columns) == ["edits", "edit", *(field.name for field in dataclasses.fields(Answer))]
    for point, at_point in rows.groupby("edits"):
        edited = at_point[at_point["edit"] > 0]
        assert set(edited["record_id"]) == set(order[:point])
        assert all(
            order[number - 1] == record for number, record in zip(edited["edit"], edited["record_id"], strict=True)
        )
        assert set(at_point.loc[at_point["edit"] == 0, "axis"]) == {"locality_unrelated"}
    assert sorted(set(rows["edits"])) == [2, 3, 8]


def test_the_scores_of_a_point_are_those_of_the_model_after_so_many_edits(process):
    bench = process()
    cell = bench.cell("ft-l")
    path = bench.finish("ft-l").path
    model, data = bench.context.load_model(cell.model), bench.context.load_data(cell.data_at(3))
    requests = [record.request() for record in data.edits]
    with Chain(cell.instance(), model, {}, bench.context) as chain:
        chain.go_on(requests[:2])
        chain.go_on(requests[2:])
        unedited = UneditedOutputs.load(ArtifactCache(bench.store).folder(cell.unedited_outputs(3)))
        wanted = evaluate(chain.edited, data, model.tokenizer, OWN, cell.eval_batch, unedited)
    rows = pd.read_parquet(path / "curve.parquet").query("edits == 3").drop(columns=["edits", "edit"])
    assert [Answer(**row) for row in rows.fillna(-1.0).to_dict("records")] == [
        dataclasses.replace(
            row, **{k: -1.0 for k in ("answer_score", "scope", "contains") if getattr(row, k) != getattr(row, k)}
        )
        for row in wanted
    ]


def test_the_last_point_is_what_a_reader_of_batch_cells_finds(process):
    bench = process()
    folder = bench.finish("ft-l")
    rows = pd.read_parquet(folder.path / "records.parquet")
    last = pd.read_parquet(folder.path / "curve.parquet").query("edits == 8").drop(columns=["edits", "edit"])
    pd.testing.assert_frame_equal(rows, last.reset_index(drop=True))
    metrics = folder.read("metrics.json")
    at_end = metrics["curve"]["8"]
    assert {of.name: metrics[of.name] for of in OWN} == {of.name: at_end[of.name] for of in OWN}


def test_the_curve_follows_from_the_rows_and_says_what_is_left_of_the_first_edits(process):
    folder = process().finish("ft-l")
    curve = folder.read("metrics.json")["curve"]
    rows = pd.read_parquet(folder.path / "curve.parquet")
    for point in (2, 3, 8):
        at_point = rows[rows["edits"] == point].drop(columns="edits")
        everything = [Answer(**row) for row in at_point.drop(columns="edit").to_dict("records")]
        first = [
            Answer(**row) for row in at_point[at_point["edit"].isin([1, 2])].drop(columns="edit").to_dict("records")
        ]
        assert curve[str(point)] == {**aggregate(everything), "retained": aggregate(first)}
        assert curve[str(point)]["retained"]["teacher_forced"]["reliability"]["n"] == 2


def test_the_unedited_model_is_asked_in_the_very_batches_of_a_point(process, monkeypatch):
    """So that rounding is never taken for lost locality."""
    bench = process()
    cell, asked = bench.cell("none"), []
    original = WeightEditedModel.generate

    def generate(self, queries):
        asked.append(tuple(query.prompt for query in queries))
        return original(self, queries)

    monkeypatch.setattr(WeightEditedModel, "generate", generate)
    for spec in cell.all_unedited_outputs():
        bench.store.artifact(spec.name, spec.key).remove()
        bench.run(spec)
    alone = list(asked)
    asked.clear()
    curve = bench.finish("none").read("metrics.json")["curve"]
    local = {probe.prompt for record in bench.context.load_data(cell.data).edits for probe in record.locality}
    assert [batch for batch in asked if batch[0] in local] == [batch for batch in alone if batch[0] in local]
    assert len({len(batch) for batch in alone}) > 1
    for point in curve.values():
        for protocol in OWN:
            scores = point[protocol.name]
            assert scores["locality"]["score"] == scores["locality_unrelated"]["score"] == 1.0


@pytest.mark.parametrize(
    ("label", "moment", "after"),
    [
        *(("ft-l", "keep", after) for after in (1, 3, 5)),
        *(("ft-l", "keep_point", after) for after in (2, 3)),
        *(("notebook", "keep", after) for after in (1, 5)),
        *(("notebook", "keep_point", 2), ("none", "keep", 2)),
    ],
)
def test_a_killed_sequence_goes_on_from_its_last_block_and_ends_with_the_same_bits(
    label, moment, after, process, killed_at, uninterrupted
):
    bench = process()
    killed_at(bench, label, moment, after)
    assert not bench.folder(bench.cell(label)).path.exists()
    done = bench.checkpoint(label).progress().edits
    again = process()
    Notebook.calls.clear()
    again.finish(label)
    assert again.bytes(label) == uninterrupted[label]
    if label == "notebook":
        later = [("extend", end - start) for start, end in BLOCKS if end > done]
        assert Notebook.calls == [("edit", 1), ("extend", 0), *later], (
            "a warm-up, what was kept, the blocks that remain"
        )


def test_a_sequence_may_be_killed_many_times(process, killed_at, uninterrupted):
    for _ in BLOCKS:
        killed_at(process(), "ft-l", "keep", 1)
    bench = process()
    bench.finish("ft-l")
    assert bench.bytes("ft-l") == uninterrupted["ft-l"]
    assert [again["edits"] for again in bench.folder(bench.cell("ft-l")).read("provenance.json")["resumed"]] == [
        2,
        3,
        4,
        6,
        8,
    ]


def test_times_of_a_resumed_sequence_are_not_citable_and_the_block_that_may_have_been_cut_is_named(process, killed_at):
    killed_at(process(), "ft-l", "keep_point", 2)
    bench = process()
    cost = bench.finish("ft-l").read("cost.json")
    assert cost["citable"] is False
    assert [(block["edits"], block["citable"]) for block in cost["blocks"]] == [
        *((2, True), (3, True), (4, False), (6, True), (8, True))
    ]
    assert bench.folder(bench.cell("ft-l")).read("provenance.json")["resumed"][0]["edits"] == 3


def test_an_uninterrupted_sequence_is_citable_and_its_seconds_are_the_sum_of_its_blocks(process):
    cost = process().finish("ft-l").read("cost.json")
    assert cost["citable"] is True
    assert [block["edits"] for block in cost["blocks"]] == [end for _, end in BLOCKS]
    assert all(block["phases_s"]["edit"] > 0 for block in cost["blocks"])
    most = cost["peak_memory_bytes"] + (4 << 20)  # Linux counts resident pages per core, and adds them up now and then
    assert all(0 < block[name] <= most for block in cost["blocks"] for name in ("memory_bytes", "peak_memory_bytes"))
    drifts = [block["norm_drift"] for block in cost["blocks"]]
    assert len(set(drifts)) == len(BLOCKS)
    assert 0 not in drifts
    assert cost["phases_s"]["edit"] == pytest.approx(sum(block["phases_s"]["edit"] for block in cost["blocks"]))
    assert cost["phases_s"]["evaluate"] > 0
    assert len(set(cost["edit_actions"])) == len(BLOCKS)


def test_nothing_is_left_of_a_checkpoint_when_the_cell_is_finished(process):
    bench = process()
    folder = bench.finish("ft-l")
    assert not list(folder.path.parent.glob(".*"))


def test_only_the_last_block_is_kept(process, killed_at):
    bench = process()
    killed_at(bench, "ft-l", "keep", 4)
    kept = sorted(path.name for path in bench.checkpoint("ft-l").root.iterdir())
    assert kept == ["edits-0000006", "point-0000002", "point-0000003"]


class Sheet(EditedModel):
    """Changes nothing that would have to be reverted."""

    def teacher_forced(self, queries):
        return []

    def generate(self, queries):
        return []

    def state(self):
        return {"notes": torch.zeros(1)}


@pytest.mark.parametrize("is_resumed", [False, True])
def test_an_edited_model_with_nothing_to_revert_is_freed_when_the_next_block_replaces_it(process, is_resumed):
    bench = process()
    model = bench.context.load_model(bench.cell("ft-l").model)
    method = SimpleNamespace(edit=lambda *_: Sheet(), extend=lambda *_: Sheet())
    with Chain(method, model, {}, bench.context) as chain:
        if is_resumed:
            chain.resume({}, Sheet().state())
        else:
            chain.go_on(())
        first = weakref.ref(chain.edited)
        chain.go_on(())
        assert first() is None


@pytest.mark.parametrize("block", [0, 2])
def test_a_block_that_fails_fails_the_cell_and_gives_the_model_back(block, process, uninterrupted, monkeypatch):
    bench = process()
    original, calls = FtL._train, []

    def fail(self, *arguments):
        calls.append(1)
        if len(calls) == block + 2:  # one call is the warm-up's
            raise FloatingPointError
        return original(self, *arguments)

    model = bench.context.load_model(bench.cell("ft-l").model)
    before = weight_hash(model.model)
    with monkeypatch.context() as patch:
        patch.setattr(FtL, "_train", fail)
        assert bench.run(bench.cell("ft-l")).reason == "FloatingPointError: "
    assert weight_hash(model.model) == before
    assert bench.folder(bench.cell("ft-l")).failure is not None
    bench.finish("ft-l")
    assert bench.bytes("ft-l") == uninterrupted["ft-l"]
    resumed = [again["edits"] for again in bench.folder(bench.cell("ft-l")).read("provenance.json")["resumed"]]
    assert resumed == ([3] if block else []), "the blocks before it are not made again"


def test_a_method_whose_first_edit_does_not_give_back_what_later_ones_change_is_found_out(process, monkeypatch):
    bench = process()
    original = FtL.extend

    def extend(self, model, state, requests, artifacts, context):
        with torch.no_grad():
            if len(requests) == 2 and weight_hash(model.model) != before:
                model.value_matrix(0)[1].add_(1)
        return original(self, model, state, requests, artifacts, context)

    before = weight_hash(bench.context.load_model(bench.cell("ft-l").model).model)
    monkeypatch.setattr(FtL, "extend", extend)
    assert "did not restore the model bit for bit" in bench.run(bench.cell("ft-l")).reason


DAMAGE = {
    "weights": (lambda root: _flip(root / "edits-0000004" / "weights.safetensors"), "is not what was written"),
    "state": (lambda root: _flip(root / "edits-0000004" / "state.safetensors"), "is not what was written"),
    "scores": (lambda root: shutil.rmtree(root / "point-0000002"), "the scores after 2 edits are missing"),
    "hash": (lambda root: _rewrite(root, "weights"), "the weights are not those that were saved"),
    "model": (lambda root: _rewrite(root, "unedited"), "it was made from different weights"),
    "version": (
        lambda root: _rewrite(root, "blocks", [{"edits": 4}]),
        "another version of this program has written it",
    ),
}


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def _rewrite(root, key, value="0" * 64):
    file = root / "edits-0000004" / "progress.json"
    content = json.loads(file.read_text())
    content["progress"][key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_checkpoint_that_is_not_what_was_kept_is_refused_with_the_way_out(what, process, killed_at, uninterrupted):
    bench = process()
    killed_at(bench, "ft-l", "keep", 3)
    root = bench.checkpoint("ft-l").root
    damage, reason = DAMAGE[what]
    damage(root)
    again = process()
    model = again.context.load_model(again.cell("ft-l").model)
    before = weight_hash(model.model)
    said = again.run(again.cell("ft-l")).reason
    assert reason in said
    assert f" → rm -r {root} && " in said, "and the command of the run again"
    assert weight_hash(model.model) == before
    shutil.rmtree(root)
    again.finish("ft-l")
    assert again.bytes("ft-l") == uninterrupted["ft-l"]


def test_scores_alone_say_nothing_of_how_far_a_sequence_is(process, killed_at, uninterrupted):
    bench = process()
    killed_at(bench, "ft-l", "keep_point", 2)
    root = bench.checkpoint("ft-l").root
    for kept in root.glob("edits-*"):
        shutil.rmtree(kept)
    stray = root / "point-0000003" / "records.parquet"
    pd.read_parquet(stray).assign(score=0.5).to_parquet(stray)
    again = process()
    again.finish("ft-l")
    assert again.bytes("ft-l") == uninterrupted["ft-l"]
    assert again.folder(again.cell("ft-l")).read("provenance.json")["resumed"] == []


def test_a_discarded_cell_begins_again(process, killed_at):
    bench = process()
    killed_at(bench, "ft-l", "keep", 3)
    bench.store.discard(bench.cell("ft-l").folder)
    assert not list(bench.checkpoint("ft-l").root.parent.glob(".*"))
    bench.finish("ft-l")
    assert bench.folder(bench.cell("ft-l")).read("provenance.json")["resumed"] == []


def test_the_next_run_clears_away_what_a_finished_cell_left_and_keeps_what_is_needed(process, killed_at, monkeypatch):
    bench = process()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "drop_checkpoint", lambda self, folder: None)  # killed right before
        bench.finish("none")
    killed_at(bench, "ft-l", "keep", 2)
    finished, unfinished = (bench.checkpoint(label).root for label in ("none", "ft-l"))
    dropped = finished.with_name(".some-cell.checkpoint.dropped")
    dropped.mkdir()
    assert finished.is_dir()
    with bench.store.locked():
        assert (finished.exists(), unfinished.exists(), dropped.exists()) == (False, True, False)


def test_random_weights_are_edited_in_sequence_and_timed_and_never_scored(process):
    bench = process()
    cell = bench.cell("ft-l")
    random = dataclasses.replace(cell, model=dataclasses.replace(cell.model, name="tiny/mistral", weights="random"))
    assert bench.run(random).reason is None
    folder = bench.store.cell(random.folder)
    assert set(folder.read("metrics.json")) == {"diagnostics"}
    assert len(pd.read_parquet(folder.path / "curve.parquet")) == 0
    assert len(folder.read("cost.json")["blocks"]) == len(BLOCKS)
