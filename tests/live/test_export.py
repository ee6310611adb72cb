"""What leaves the store loads again and answers as before, bit for bit."""

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from harness import registry
from harness.errors import UserError
from harness.live.export import export
from harness.live.loading import load_edited
from harness.live.opening import check, open_cell
from harness.models.weights import weight_hash
from harness.plan.recall import recalled
from harness.run.progress import Display
from harness.store.store import Store
from harness.tokens import joint_queries


def questions(live):
    """Four edits with their targets, and a prompt about something else."""
    edits = [(request.prompt, request.target_new) for request in live.origin.requests[:4]]
    return joint_queries(live.model.tokenizer, [*edits, ("Björk was born in", "Reykjavík")])


def opened(doors, label):
    root, cells = doors
    store = Store(root)
    cell = recalled(store.cell(cells[label].folder))
    return open_cell(cell, store, "cpu", Display(Console(quiet=True))), cell, root


def said(live):
    queries = questions(live)
    return live.generate(queries), live.teacher_forced(queries), live.scope(queries)


@pytest.mark.parametrize("label", ["ft-l", "grace", "onceedit", "sequence"])
def test_an_opened_cell_gives_the_stored_answers_and_leaves_its_model_unedited(doors, label):
    live, cell, store = opened(doors, label)
    assert cell.cell_id == doors[1][label].cell_id
    found = check(live, cell, store)
    assert found.is_same
    assert found.asked == 8
    kept = Store(store).cell(cell.folder).read("provenance.json")["weights"]
    assert weight_hash(live.model.model) == kept
    assert said(live)[0] != live.unedited.generate(questions(live))


def test_a_checkpoint_gives_plain_transformers_the_same_logits(doors, tmp_path):
    live, _, _ = opened(doors, "ft-l")
    folder = live.save(tmp_path / "model")
    prompt = live.origin.requests[0].prompt
    ids = torch.tensor([live.model.tokenizer(prompt)["input_ids"]])
    with live.edited.installed(), torch.no_grad():
        torch.save(live.model.model(input_ids=ids).logits, tmp_path / "wanted.pt")
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.use_deterministic_algorithms(True)
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype="float32", attn_implementation="sdpa")
ids = AutoTokenizer.from_pretrained({str(folder)!r})({prompt!r}, return_tensors="pt").input_ids
assert torch.equal(model(input_ids=ids).logits, torch.load({str(tmp_path / "wanted.pt")!r}))
assert not any(name.startswith("harness") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert weight_hash(load_edited(folder).model.model) != weight_hash(live.model.model)
    readme = (folder / "README.md").read_text()
    assert "AutoModelForCausalLM" in readme
    assert live.origin.facts["cell"] in readme


@pytest.mark.parametrize("label", ["ft-l", "grace", "onceedit", "sequence"])
def test_a_loaded_export_answers_as_the_model_that_was_saved(doors, tmp_path, label):
    live, _, _ = opened(doors, label)
    before = said(live)
    loaded = load_edited(live.save(tmp_path / "model"))
    assert said(loaded) == before
    assert loaded.origin.requests == live.origin.requests


def test_half_precision_keeps_the_exact_matrices_next_to_the_rounded_ones(doors, tmp_path):
    live, _, _ = opened(doors, "ft-l")
    model = live.model
    model.model.bfloat16()
    object.__setattr__(live.origin.model, "dtype", "bfloat16")
    folder = tmp_path / "model"
    written = export(live, folder)
    assert any("rounded to bfloat16" in remark for remark in written.remarks)
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    exact = load_file(folder / "edited.safetensors")
    assert all(torch.equal(exact[name], value) for name, value in live.edited.weights.items())
    assert all(torch.equal(stored[name], value.bfloat16()) for name, value in exact.items())


def test_a_folder_with_something_in_it_is_left_alone(doors, tmp_path):
    live, _, _ = opened(doors, "grace")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        live.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_edit_is_refused_on_another_model(doors, tmp_path):
    live, _, _ = opened(doors, "grace")
    folder = live.save(tmp_path / "model")
    described = json.loads((folder / "edited.json").read_text())
    described["model"]["sha256"] = "0" * 64
    (folder / "edited.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="made on a different model"):
        load_edited(folder)


def test_an_edit_is_not_repeated_by_other_code(doors, tmp_path, monkeypatch):
    """As of EasyEdit, whose checkout has moved on since the export."""
    root, cells = doors
    method = registry.find_method("grace", "native")
    monkeypatch.setattr(method, "code_identity", lambda self: {"easyedit": "a commit"})
    store = Store(root)
    live = open_cell(cells["grace"], store, "cpu", Display(Console(quiet=True)))
    folder = live.save(tmp_path / "model")
    assert said(load_edited(folder)) == said(live)
    monkeypatch.setattr(method, "code_identity", lambda self: {"easyedit": "a commit", "changes": "some"})
    with pytest.raises(UserError, match=r"made by other code of grace, native \(changes changed\)"):
        load_edited(folder)


def test_an_empty_folder_is_replaced_but_not_the_working_directory(doors, tmp_path, monkeypatch):
    live, _, _ = opened(doors, "grace")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="already exists"):
        live.save(".")
    monkeypatch.chdir(tmp_path)
    assert (live.save("empty/../empty") / "edited.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "no exported model"), ("{", "damaged"), ('{"format": 9}', "format 9")]
)
def test_a_folder_that_is_no_export_is_refused_in_one_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "edited.json").write_text(content)
        (tmp_path / "edits.jsonl").write_text("")
    with pytest.raises(UserError, match=complaint):
        load_edited(tmp_path)
