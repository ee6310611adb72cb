"""Benchmark tasks and the rows they are made of. Imports neither torch nor lm-eval."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from harness.errors import UnavailableError, UserError, did_you_mean
from harness.evaluation.capability import builtin
from harness.identity import digest

PAGE = "docs/capability.md"
FOLDER = "HARNESS_CAPABILITY"
"""Environment variable that names the folder of the tasks' files."""

Source = Literal["file", "lm-eval"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How rows of a task become questions, as in lm-eval's task of the same name.

    Attributes:
        title: in tables.
        metric: the metric that tables show.
        keys: keys of a row, with the type of their values.
        config: lm-eval's configuration, apart from where the rows come from.
        shots: rows at the beginning of a file that are shown as examples and not asked, unless a suite says otherwise.
        rows: makes rows if no file is named; None if the task needs one.
        version: raised when prompts or metrics change; part of the identity.
    """

    title: str
    metric: str
    keys: Mapping[str, type]
    config: Mapping[str, Any]
    shots: int = 0
    rows: Callable[[], Sequence[Row]] | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task as a cell asks it.

    Attributes:
        name: in `FORMS`, or lm-eval's own name.
        source: `file` for rows of `FORMS`, `lm-eval` for a task of that package with its own data.
        path: the file; empty if the rows are generated or lm-eval's.
        items: number of items that are asked; None for all that lm-eval has.
        shots: rows shown as examples; None for as many as lm-eval's task has.
        sha256: hash of the rows; empty for lm-eval's.
        release: of lm-eval, for its own tasks.
        left_out: rows of the file that cannot be asked, because a choice has no text.
    """

    name: str
    source: Source = "file"
    path: str = ""
    items: int | None = None
    shots: int | None = None
    sha256: str = ""
    release: str = ""
    left_out: int = 0

    @property
    def title(self) -> str:
        """Its name in tables."""
        return FORMS[self.name].title if self.source == "file" else self.name

    @property
    def compares_probabilities(self) -> bool:
        """Whether its score depends on probabilities of texts rather than on an answer; unknown for lm-eval's own tasks."""
        return self.source == "file" and FORMS[self.name].config["output_type"] != "generate_until"

    def identity(self) -> dict[str, Any]:
        """Everything that decides its questions; the place of the file does not."""
        own = {"items": self.items, "lm_eval": self.release}
        rows = {"version": FORMS[self.name].version, "rows": self.sha256} if self.source == "file" else own
        return {"name": self.name, "shots": self.shots, **rows}

    def rows(self) -> tuple[list[Row], list[Row]]:
        """The examples and the rows that are asked.

        Raises:
            UserError: if the file is no longer what it was.
        """
        found = _selected(self.name, self.path, self.items, self.shots or 0)
        if digest(found) != self.sha256:
            raise UserError(f"{self.path}: has changed since the run was planned", fix="run the suite again")
        return found[: self.shots or 0], found[self.shots or 0 :]


def reference(
    name: str, *, source: Source = "file", path: str = "", items: int | None = None, shots: int | None = None
) -> TaskRef:
    """Find a task and read its rows.

    Args:
        name: of the task.
        source: see `TaskRef`.
        path: its file, or a folder in which a file named after the task is looked for; empty for generated rows.
        items: most items to ask, the first ones of the file, or of each subject in turn if rows have one; None for all.
        shots: rows before them to show as examples; None for the task's own number.

    Raises:
        UserError: for an unknown task or a file with bad rows.
        UnavailableError: if there is no file, or lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise UnavailableError("capability: lm-eval is not installed", fix="pip install 'editing-harness[capability]'")
    if source == "lm-eval":
        return TaskRef(name, source, items=items, shots=shots, release=metadata.version("lm-eval"))
    form, file = FORMS[name], str(_file(name, path)) if path or FORMS[name].rows is None else ""
    shots = form.shots if shots is None else shots
    found = _selected(name, file, items, shots)
    left_out = _read(name, Path(file), Path(file).stat().st_mtime_ns)[1] if file else 0
    return TaskRef(name, source, file, len(found) - shots, shots, digest(found), left_out=left_out)


def check_name(name: str, where: str) -> None:
    """Refuse a name that is not a task of this module.

    Raises:
        UserError: with the nearest known name.
    """
    if name not in FORMS:
        raise UserError(
            f"{where}: unknown capability task '{name}'{did_you_mean(name, FORMS)}; known: {', '.join(FORMS)}",
            fix=f"{{name: {name}, source: lm-eval}}, if it is a task of lm-eval",
        )


def _file(name: str, path: str) -> Path:
    """The file of a task: the path itself, or the one in a folder that is named after it."""
    if not path:
        raise UnavailableError(
            f"capability task '{name}' needs a file of JSON Lines ({PAGE})",
            fix=f"export {FOLDER}=FOLDER with {name}.jsonl, or {{name: {name}, path: FILE}} in the suite",
        )
    given = Path(path).expanduser()
    if given.is_file():
        return given
    patterns = (f"{name}.jsonl", f"{name}_*.jsonl", f"*_{name}.jsonl")
    found = sorted({file for pattern in patterns for file in given.glob(pattern)}) if given.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{given}: several files of capability task '{name}': {', '.join(file.name for file in found)}",
            fix=f"{{name: {name}, path: {found[0]}}} in the suite",
        )
    what = f"no file of capability task '{name}' in this folder" if given.is_dir() else "no such file or folder"
    raise UnavailableError(f"{given}: {what}", fix=f"ls {given if given.is_dir() else given.parent}")


def _selected(name: str, file: str, items: int | None, shots: int) -> list[Row]:
    """The examples and the items of a task, one after the other."""
    made = FORMS[name].rows
    rows = list(made() if made and not file else _read(name, Path(file), Path(file).stat().st_mtime_ns)[0])
    if len(rows) <= shots:
        raise UserError(
            f"{file or f'capability task {name!r}'}: has {len(rows)} rows, which leaves none to ask after {shots} examples",
            fix=f"shots: {max(0, len(rows) - 1)}",
        )
    if items is None or len(rows) <= shots + items:
        return rows
    return rows[:shots] + _across_subjects(rows[shots:])[:items]


def _across_subjects(rows: Sequence[Row]) -> list[Row]:
    """The first row of each subject, then the second of each, and so on; rows without a subject stay in order."""
    of_subject: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_subject[row.get("subject", "")].append(row)
    rounds = itertools.zip_longest(*of_subject.values())
    return [row for one_of_each in rounds for row in one_of_each if row is not None]


@lru_cache(maxsize=32)
def _read(name: str, file: Path, changed: int) -> tuple[tuple[Row, ...], int]:
    """The rows of a file that can be asked, and the number of the others."""
    rows = tuple(_rows(name, file))
    usable = tuple(row for row in rows if all(row.get("choices", "-")))
    return usable, len(rows) - len(usable)


def _rows(name: str, file: Path) -> Iterator[Row]:
    """The rows of a file with the keys of a task; other keys are left out.

    Raises:
        UserError: for the first line that is not JSON or lacks a key.
    """
    keys = FORMS[name].keys
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}: not JSON: {error.msg}", fix=f"sed -n {number}p {file}") from None
        if problem := _problem(row, keys):
            raise UserError(f"{file}:{number}: {problem}", fix=f"sed -n {number}p {file}; the format is in {PAGE}")
        yield {key: row[key] for key in keys}


def _problem(row: Any, keys: Mapping[str, type]) -> str:
    """Why a row is not valid for a task; empty if it is."""
    if not isinstance(row, dict):
        return "expected an object with keys"
    for key, kind in keys.items():
        if key not in row:
            return f"missing key '{key}'"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"'{key}' is not {_KINDS[kind]}"
    choices: Sequence[Any] = row["choices"] if "choices" in keys else ("", "")
    place = row["answer"] if "choices" in keys else row.get("label", 0)
    if "choices" in keys and not (len(choices) > 1 and all(isinstance(each, str) for each in choices)):
        return "'choices' is not a list of two or more texts"
    return "" if 0 <= place < len(choices) else f"there is no choice {place}"


_KINDS = {str: "text", int: "a whole number", list: "a list"}


def _multiple_choice(text: str, choices: Any, target: str, *metrics: str, **more: Any) -> dict[str, Any]:
    """Configuration of a task that picks the most probable continuation."""
    listed = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    asked = {"doc_to_text": text, "doc_to_choice": choices, "doc_to_target": target}
    return {"output_type": "multiple_choice", **asked, "metric_list": listed, **more}


def _number(name: str, pattern: str, **more: Any) -> dict[str, Any]:
    """A filter of lm-eval that takes a number out of an answer."""
    return {
        "name": name,
        "filter": [{"function": "regex", "regex_pattern": pattern, **more}, {"function": "take_first"}],
    }


_CHOICE, _PAIR = {"question": str, "choices": list, "answer": int}, {"sentence1": str, "sentence2": str, "label": int}
_SENTENCE = {"sentence": str, "label": int}
_LETTERS = "\n".join(
    ["{{question.strip()}}", *(f"{letter}. {{{{choices[{place}]}}}}" for place, letter in enumerate("ABCD"))]
)

FORMS: Mapping[str, Form] = {
    "mmlu": Form(
        "MMLU",
        "acc",
        {"subject": str, **_CHOICE},
        _multiple_choice(
            f"{_LETTERS}\nAnswer:",
            ["A", "B", "C", "D"],
            "answer",
            "acc",
            description="The following are multiple choice questions (with answers) about "
            "{{subject.replace('_', ' ')}}.\n\n",
        ),
    ),
    "arc_challenge": Form(
        "ARC-C",
        "acc_norm",
        _CHOICE,
        _multiple_choice("Question: {{question}}\nAnswer:", "{{choices}}", "{{answer}}", "acc", "acc_norm"),
    ),
    "gsm8k": Form(
        "GSM8K",
        "exact_match,flexible-extract",
        {"question": str, "answer": str},
        {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0},
            "metric_list": [
                {
                    "metric": "exact_match",
                    "aggregation": "mean",
                    "higher_is_better": True,
                    "ignore_case": True,
                    "ignore_punctuation": False,
                    "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
                }
            ],
            "filter_list": [
                _number("strict-match", "#### (\\-?[0-9\\.\\,]+)"),
                _number("flexible-extract", "(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
            ],
        },
        shots=5,
    ),
    "cola": Form(
        "CoLA",
        "acc",
        _SENTENCE,
        _multiple_choice(
            "{{sentence}}\nQuestion: Does this sentence make sense?\nAnswer:", ["no", "yes"], "label", "acc"
        ),
    ),
    "mrpc": Form(
        "MRPC",
        "acc",
        _PAIR,
        _multiple_choice(
            "Sentence 1: {{sentence1}}\nSentence 2: {{sentence2}}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
            ["no", "yes"],
            "label",
            "acc",
        ),
    ),
    "rte": Form(
        "RTE",
        "acc",
        _PAIR,
        _multiple_choice(
            "{{sentence1}}\nQuestion: {{sentence2}} True or False?\nAnswer:", ["True", "False"], "label", "acc"
        ),
    ),
    "sst2": Form(
        "SST-2",
        "acc",
        _SENTENCE,
        _multiple_choice(
            "{{sentence}}\nQuestion: Is this sentence positive or negative?\nAnswer:",
            ["negative", "positive"],
            "label",
            "acc",
        ),
    ),
    "facts": Form(
        "Facts",
        "acc",
        _CHOICE,
        _multiple_choice("{{question}}", "{{choices}}", "{{answer}}", "acc"),
        rows=builtin.facts,
    ),
    "perplexity": Form(
        "Perplexity",
        "word_perplexity",
        {"text": str},
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
        rows=builtin.paragraphs,
    ),
}
"""Tasks with rows from a JSON Lines file or made here, by name."""
