"""The comparison with lm-eval's own `hf` model: it finds what differs, and runs from end to end on a small checkpoint."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `capability`")

from benchmarks.lm_eval import compare, main
from harness.evaluation.capability.tasks import TaskRef
from tests.helpers.small_suites import write_checkpoint

CHOICE = TaskRef("sst2")


def sample(item, answers, **metrics):
    return {"doc_id": item, "filter": "none", "resps": [[one] for one in answers], "metrics": [*metrics], **metrics}


def test_a_log_probability_a_flag_and_a_text_may_differ():
    ours = [sample(item, [(-1.0, True), (-2.0, False)], acc=1.0) for item in range(3)]
    same = compare(CHOICE, ours, ours)
    assert (same.items, same.requests, same.differing, same.largest) == (3, 6, (), 0.0)
    theirs = [
        sample(0, [(-1.0001, True), (-2.0, False)], acc=1.0),
        sample(1, [(-1.0, True), (-2.1, False)], acc=1.0),
        sample(2, [(-1.0, False), (-2.0, False)], acc=1.0),
    ]
    found = compare(CHOICE, ours, theirs)
    assert found.differing == (1, 2)
    assert found.largest == pytest.approx(0.1)
    written = [sample(0, ["a"], exact_match=1.0), sample(1, ["b"], exact_match=0.0)]
    task = replace(CHOICE, name="gsm8k")
    assert compare(task, written, [written[0], sample(1, ["c"], exact_match=0.0)]).differing == (1,)
    assert compare(task, written, [written[0], sample(1, ["b"], exact_match=1.0)]).differing == (1,)


def test_both_sides_answer_alike_on_a_checkpoint(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "gsm8k.jsonl").write_text(
        "".join(json.dumps({"question": f"{n} and two?", "answer": f"#### {n + 2}"}) + "\n" for n in range(2))
    )
    files = ["--folder", str(tmp_path), "--out", str(tmp_path / "results.json")]
    tasks = ["--tasks", "facts", "gsm8k", "perplexity", "--shots", "0", "--answer", "8", "--quick"]
    main(["--model", f"tiny/llama={checkpoint}", *files, *tasks])
    results = json.loads((tmp_path / "results.json").read_text())["compared"]
    assert [(one["task"], one["items"], one["differing"]) for one in results] == [
        ("facts", 2, []),
        ("gsm8k", 2, []),
        ("perplexity", 2, []),
    ]
