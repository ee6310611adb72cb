"""Small records in each upstream format."""

import copy
import json
from pathlib import Path
from typing import Any

KNOWEDIT = {
    "subject": "Epaspidoceras",
    "target_new": "Noctuidae",
    "prompt": "Which family does Epaspidoceras belong to?",
    "ground_truth": ["Aspidoceratidae", "Aspidoceratids"],
    "rephrase_prompt": "What family are Epaspidoceras?",
    "cond": "x >> y || z",
    "locality": {"Relation_Specificity": [{"prompt": "Epaspidoceras taxon rank", "ground_truth": ["genus", "rank"]}]},
    "portability": {"Reasoning": [{"prompt": "What is its common name?", "ground_truth": "Owlet moths"}]},
}
MEND = {
    "subject": "Toodyay Fire Station",
    "src": "Who is the architect of Toodyay Fire Station?",
    "pred": "Wong Tung",
    "rephrase": "Who was behind Toodyay Fire Station?",
    "alt": " Kohn Pedersen Fox",
    "answers": ["Ken Duncan", "K. Duncan"],
    "loc": "nq question: who won the new york marathon",
    "loc_ans": "2017",
    "cond": "x >> y || z",
}
ONE_HOP = {"Recalled Relation": "(a, b, c)", "New Question": "In which city does that firm sit?", "New Answer": "Oslo"}
COUNTERFACT = {
    "case_id": 4482,
    "pararel_idx": 14235,
    "requested_rewrite": {
        "prompt": "{} originates from",
        "relation_id": "P19",
        "target_new": {"str": "Philadelphia", "id": "Q935334"},
        "target_true": {"str": "London", "id": "Q84"},
        "subject": "Spike Hughes",
    },
    "paraphrase_prompts": [
        "The mayor ran again. Spike Hughes is native to",
        "Amateur Athletic Union (AAU). Spike Hughes was born in",
    ],
    "neighborhood_prompts": ["Max Mosley originates from", "Lita Ford was native to"],
    "attribute_prompts": ["Otis Rush was native to"],
    "generation_prompts": ["Spike Hughes currently lives in"],
}
FLAT = {
    "case_id": 0,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Where Danielle Darrieux is from, people speak",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
}
TABLE = "What is the native language of Christiane Cohendy?\tGerman\nWhat is the end of Atlanta Flames?\t1931\n"
EXAMPLES = {"knowedit": KNOWEDIT, "mend": MEND, "counterfact": COUNTERFACT, "counterfact-flat": FLAT}


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    """Copy a record without a field, given as a dotted path."""
    changed = copy.deepcopy(row)
    *path, last = field.split(".")
    inner = changed
    for step in path:
        inner = inner[step]
    del inner[last]
    return changed


def flat(number: int, **changes: Any) -> dict[str, Any]:
    """Make a flat CounterFact record with its own subject."""
    subject = changes.get("subject", f"Person{number}")
    row = {
        "case_id": number,
        "prompt": f"The mother tongue of {subject} is",
        "target_new": "English",
        "subject": subject,
        "ground_truth": "French",
        "rephrase_prompt": f"Where {subject} lives, people speak",
        "locality_prompt": f"Neighbour{number} speaks",
        "locality_ground_truth": "French",
    }
    return row | changes


def write(path: Path, rows: Any) -> Path:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path
