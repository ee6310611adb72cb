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
WIKI_COUNTERFACT = {
    "subject": "Goursez Vreizh",
    "prompt": "The country of Goursez Vreizh is",
    "target_new": "Spain",
    "ground_truth": "France",
    "portability": {
        "Reasoning": [{"prompt": "The capital of the country of Goursez Vreizh is", "ground_truth": "Madrid"}],
        "Subject_Aliasing": [{"prompt": "The country of Gorsedd is", "ground_truth": [["Spain"], ["España", "ES"]]}],
    },
    "locality": {"Forgetfulness": [{"prompt": "The founder of Goursez Vreizh is", "ground_truth": "Le Fustec"}]},
}
WIKI_RECENT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "portability": {"Logical_Generalization": [{"prompt": "Is Leo Arons alive?", "ground_truth": [["no"], ["false"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The father of Leo Arons is", "ground_truth": []}]},
}
WIKIBIO = {
    "text": "This is a Wikipedia passage about ann lee. Ann Lee was a potter.",
    "labels": "She was born in Leeds.",
    "concept": "ann lee",
    "locality": {"Relation_Specificity": [{"prompt": "ann lee occupation", "ground_truth": ["potter"]}]},
}
QAEDIT = {
    "id": 7,
    "source": "NQ",
    "prompt": "who wrote the hobbit?",
    "target": "Ann Lee",
    "subject": "the hobbit",
    "rephrase": "The author of the hobbit is whom?",
    "locality": [{"loc": "what is a crock pot", "loc_ans": "a pot"}, {"loc": "when is dawn", "loc_ans": "06:00"}],
}
HALLUEDIT = {
    "topic": "places_city",
    "subject": "Minas",
    "relation": "official language",
    "object": "Spanish",
    "question": "What is the official language of Minas?",
    "output_some_model": "Portuguese",
    "paraphrased_question": "Which language do people of Minas speak, officially?",
    "multiple_choice_with_letters": "A. Spanish  B. French",
    "multiple_choice_labels": "A",
    "yes_question": "Is Spanish the official language of Minas?",
    "no_question": "Is French the official language of Minas?",
    "locality_question": "What is there to see in Minas?",
    "reversed_relation_question": "In which place is Spanish spoken?",
    "question_2hop": "In which country did the language of Minas arise?",
    "answer_2hop": "Spain",
}


def chain(number: int, *edits: tuple[str, str]) -> dict[str, Any]:
    """Make an MQuAKE record of edits, each a prompt with `{}` after its subject `A` and a new object, and a known fact."""
    rewrites = [
        {
            "prompt": prompt,
            "relation_id": f"P{place}",
            "target_new": {"str": new},
            "target_true": {"str": "old"},
            "subject": "A",
            "question": f"Q: {prompt.format('A')}?",
        }
        for place, (prompt, new) in enumerate(edits)
    ]
    hops = [{"question": row["question"], "answer": new} for row, (_, new) in zip(rewrites, edits, strict=True)]
    return {
        "case_id": number,
        "requested_rewrite": rewrites,
        "questions": [f"What follows in {number}?", f"And what in {number}?"],
        "new_answer": "end",
        "new_answer_alias": ["the end"],
        "new_single_hops": [*hops, {"question": "What is known?", "answer": "end", "answer_alias": ["fin"]}],
    }


TABLE = "What is the native language of Christiane Cohendy?\tGerman\nWhat is the end of Atlanta Flames?\t1931\n"
EXAMPLES = {"knowedit": KNOWEDIT, "mend": MEND, "counterfact": COUNTERFACT, "counterfact-flat": FLAT}
BENCHMARKS = {
    "wiki-counterfact": WIKI_COUNTERFACT,
    "wiki-recent": WIKI_RECENT,
    "wikibio": WIKIBIO,
    "qaedit": QAEDIT,
    "halluedit": HALLUEDIT,
    "mquake": chain(1, ("{} is one", "B"), ("{} is two", "C")),
}


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
