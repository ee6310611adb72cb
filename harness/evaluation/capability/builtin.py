"""Rows of tasks without a file: a fixed text, and questions about the facts that tiny models are trained on."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness.data.synthetic import upstream_rows

TEXT = Path(__file__).with_name("text.txt")
"""Plain expository English, written for this project, so no model was trained on it."""

FACTS, CHOICES, SEED = 100, 4, 0


def paragraphs() -> list[dict[str, Any]]:
    """The paragraphs of the fixed text."""
    return [{"text": " ".join(part.split())} for part in TEXT.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def facts() -> list[dict[str, Any]]:
    """Four-choice questions about synthetic facts that are never edited; the other choices are objects of the same relation."""
    rows, objects = upstream_rows("counterfact"), defaultdict(set)
    for row in rows:
        rewrite = row["requested_rewrite"]
        objects[rewrite["relation_id"]].add(rewrite["target_true"]["str"])
    asked: dict[str, dict[str, Any]] = {}
    draw = random.Random(SEED)
    for row in rows:
        rewrite = row["requested_rewrite"]
        true = rewrite["target_true"]["str"]
        others = draw.sample(sorted(objects[rewrite["relation_id"]] - {true}), CHOICES - 1)
        choices = draw.sample([true, *others], CHOICES)
        question = row["neighborhood_prompts"][0]
        asked.setdefault(question, {"question": question, "choices": choices, "answer": choices.index(true)})
    return list(asked.values())[:FACTS]
