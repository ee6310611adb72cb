"""Cutting the unrelated sentence that stands in front of CounterFact's paraphrases."""

import re
from dataclasses import replace

from harness.records import EditRecord

# The end of a sentence: its mark, what closes quotes and brackets, and space; a line break; or a mark with no space
# behind it, where two small letters stand before and a capital after ("season.Spike", but not "NU.nl" or "U.S.").
_BOUNDARY = re.compile(r"[.!?][\"'”’)\]]*\s+|\s*\n\s*|(?<=[^\W\d_A-Z]{2}[.!?])(?=[A-Z])")


def strip_distractor(paraphrase: str, subject: str) -> str:
    """The paraphrase from the last sentence boundary before its subject on.

    Only what stands before the subject's last occurrence is searched, so that periods of the subject itself
    ("John C. Breckinridge") and of the text after it ("the twin city of Edinburgh? It is") cut nothing. Without the
    subject, or without a boundary before it, the text stays as it is; headings that run into the sentence do too.
    """
    start = paraphrase.rfind(subject) if subject else -1
    if start < 0:
        return paraphrase
    cut = 0
    for boundary in _BOUNDARY.finditer(paraphrase[: start + 1]):
        if boundary.end() <= start:
            cut = boundary.end()
    return paraphrase[cut:]


def without_distractors(record: EditRecord) -> EditRecord:
    """The record with every rephrase cut."""
    return replace(record, rephrases=tuple(strip_distractor(text, record.subject) for text in record.rephrases))
