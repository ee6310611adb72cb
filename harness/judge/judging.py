"""Have a language model say which of a cell's free-form answers are correct.

The judge sees what exact match compares: the question, the reference answer and the model's answer, on locality axes the
unedited model's answer as the reference. It needs neither the models nor the records, so finished cells can be judged at any time.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from harness import registry
from harness.evaluation.natural import Natural
from harness.evaluation.probes import LOCALITY_AXES
from harness.files import understood
from harness.judge.endpoint import Endpoint, EndpointError
from harness.store.answers import KEY, with_unedited
from harness.store.store import Folder, Store
from harness.store.verdicts import COLUMNS, Replies, write_verdicts
from harness.suite.schema import JudgeForm

if TYPE_CHECKING:
    import pandas as pd

PROMPT = """\
You grade the answer of a language model to a question or to the beginning of a sentence. Decide whether it says the same as \
the reference answer.

CORRECT: it names the same thing as the reference answer, in any wording, spelling, language or precision, whatever follows.
INCORRECT: it names something else, more than one thing, or nothing.

Only the reference answer counts. It may be false in the real world on purpose.

Question: {question}
Reference answer: {reference}
Answer of the model: {answer}

Reply with exactly one word: CORRECT or INCORRECT."""
"""The three texts are inserted as JSON strings, so that none of them can end early or add a line."""

PATIENCE = 20
"""Number of first replies after which judging stops if none of them was a verdict."""

_VERDICT = re.compile(r"(CORRECT|INCORRECT)\.?", re.IGNORECASE)


class Follow(Protocol):
    """Callback that shows how many answers of a cell have been judged."""

    def __call__(self, *, completed: int, total: int) -> object:
        """So many of all requests have been answered."""
        ...


@dataclass(frozen=True, slots=True)
class Judged:
    """Outcome of judging one cell.

    Attributes:
        answers: number of answers.
        asked: requests that it took; the same question about the same answer is asked once.
        without_verdict: answers on which the judge has given none.
        example: one reply that is no verdict; empty if there is none.
        no_reference: answers that could not be judged, because nothing is known to compare them with.
    """

    answers: int
    asked: int
    without_verdict: int
    example: str
    no_reference: int


def verdict_of(reply: str) -> float:
    """1 for correct, 0 for incorrect, NaN for anything but one of the two words."""
    found = _VERDICT.fullmatch(reply.strip())
    return math.nan if found is None else float(found[1].upper() == "CORRECT")


def judge_prompt(question: str, reference: str, answer: str) -> str:
    """The prompt for a judge about one answer."""
    quoted = (json.dumps(text, ensure_ascii=False) for text in (question, reference, answer))
    return PROMPT.format(**dict(zip(("question", "reference", "answer"), quoted, strict=True)))


def free_protocols() -> dict[str, Natural]:
    """The protocols under which models write freely, so that answers can be judged, by name."""
    return {name: each for name, each in registry.protocols.all().items() if isinstance(each, Natural)}


class Judge:
    """A judge and its earlier replies."""

    def __init__(self, form: JudgeForm, replies: Replies) -> None:
        """Prepare the interface, without asking anything yet.

        Raises:
            UserError: if the environment lacks its key.
        """
        self._form, self._replies, self._endpoint = form, replies, Endpoint(form)
        self._verdicts = self._others = 0
        self._has_judged = False

    def cell(self, store: Store, folder: Folder, follow: Follow) -> Judged | None:
        """Judge the free-form answers of a finished cell and write the verdicts next to them; None if it has none.

        Args:
            store: where to look for the unedited model's answers.
            folder: the cell.
            follow: called as requests are answered.

        Raises:
            UserError: if a file is damaged, the interface fails, or it replies with anything but verdicts. Verdicts that have
                been given are kept in the store, and the cell remains as it is.
        """
        rows = with_unedited(store, folder)
        rows = rows[rows["protocol"].isin(free_protocols())]
        if not len(rows):
            return None
        with understood(folder.path):
            edits = folder.read("cell.json")["method"]["edits"]
        asked = _with_prompts(rows, edits)
        keys = {prompt: self._endpoint.key(prompt) for prompt in dict.fromkeys(asked["judge_prompt"])}
        new = [prompt for prompt, key in keys.items() if key not in self._replies.known]
        self._has_judged |= len(new) < len(keys)
        given = self._ask(new, keys, follow)
        asked["judge"] = self._form.title
        asked["judge_reply"] = [
            self._replies.known.get(keys[prompt], given.get(prompt, "")) for prompt in asked["judge_prompt"]
        ]
        asked["verdict"] = asked["judge_reply"].map(verdict_of).astype(float)
        write_verdicts(folder, asked[[*KEY, *COLUMNS]], self._form.title)
        unclear = asked.loc[asked["verdict"].isna(), "judge_reply"]
        return Judged(
            len(asked),
            len(new),
            len(unclear),
            one_line(str(unclear.iloc[0])) if len(unclear) else "",
            len(rows) - len(asked),
        )

    def _ask(self, prompts: Sequence[str], keys: Mapping[str, str], follow: Follow) -> dict[str, str]:
        """Ask several questions at a time, and keep each verdict at once.

        Returns:
            The replies that are not verdicts, by prompt; they are not kept, so the next run asks again.
        """
        unclear: dict[str, str] = {}
        pool = ThreadPoolExecutor(self._form.parallel)
        running: dict[Future[str], str] = {pool.submit(self._endpoint.ask, prompt): prompt for prompt in prompts}
        left = set(running)

        def keep(done: Future[str]) -> None:
            left.discard(done)
            prompt, reply = running[done], done.result()
            if math.isnan(verdict_of(reply)):
                unclear[prompt] = reply
                self._others += 1
            else:
                self._verdicts += 1
                self._replies.add(keys[prompt], reply)

        try:
            for done in as_completed(running):
                keep(done)
                self._check(unclear)
                follow(completed=len(running) - len(left), total=len(running))
            return unclear
        except EndpointError as error:
            failure = error
        finally:
            self._endpoint.stop()
            pool.shutdown(cancel_futures=True)
            for done in list(left):  # others that were on their way
                if not done.cancelled() and done.exception() is None:
                    keep(done)
        raise EndpointError(f"{failure.message}; new verdicts kept: {self._verdicts:,}", fix=failure.fix)

    def _check(self, unclear: Mapping[str, str]) -> None:
        """Give up a judge that does not judge; verdicts of earlier runs show that it does."""
        if not self._has_judged and not self._verdicts and self._others >= PATIENCE:
            raise EndpointError(
                f"judge '{self._form.model}': none of its first {self._others} replies is CORRECT or INCORRECT, but "
                f"'{one_line([*unclear.values()][-1])}'",
                fix="judge: {model: …}, one that follows instructions and does not think aloud",
            )


def one_line(text: str, limit: int = 60) -> str:
    """The beginning of a text, on one line."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else f"{joined[: limit - 1]}…"


def _with_prompts(rows: "pd.DataFrame", edits: bool) -> "pd.DataFrame":
    """The answers that can be judged, with what the judge is asked.

    Left out are answers to locality prompts whose unedited answer is not in the store, and those of the unedited model itself.
    """
    is_local = rows["axis"].isin(LOCALITY_AXES)
    rows = rows.assign(reference=rows["target"].where(~is_local, rows["unedited"] if edits else None))
    rows = rows[rows["reference"].map(lambda text: isinstance(text, str) and bool(text.strip()))]
    protocols = free_protocols()
    prompts = [
        judge_prompt(protocols[protocol].question(prompt), reference, answer)
        for protocol, prompt, reference, answer in zip(
            rows["protocol"], rows["prompt"], rows["reference"], rows["predicted"], strict=True
        )
    ]
    return rows.assign(judge_prompt=prompts)
