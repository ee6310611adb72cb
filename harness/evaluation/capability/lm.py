"""Adapter that lets lm-eval use any edited model, with the ids, windows and stop texts of lm-eval's own `hf` model."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.api import EditedModel
from harness.errors import UserError
from harness.models.batching import length_sorted
from harness.models.loaded import LoadedModel
from harness.tokens import Query

MAX_ANSWER = 256
"""As in lm-eval's `hf` model."""


class EditedLM(TemplateLM):  # type: ignore[misc]
    """An edited model that lm-eval can ask. Decoding is greedy.

    Routing decisions read the context of a request, and the whole text where there is none (`loglikelihood_rolling`).

    Args:
        edited: what answers.
        model: the loaded model under it: its tokenizer and the number of its positions.
        batch_size: rows per call.
    """

    def __init__(self, edited: EditedModel, model: LoadedModel, batch_size: int) -> None:
        super().__init__()
        self._edited, self._model, self._rows = edited, model, batch_size
        self.tokenizer = model.tokenizer

    @property
    def max_length(self) -> int:
        """Longest text in ids."""
        return self._model.positions

    @property
    def max_gen_toks(self) -> int:
        """Longest answer in ids of a request that does not say."""
        return MAX_ANSWER

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return int(self._model.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Id that a text without context is conditioned on: BOS or, without one, EOS."""
        bos = self._model.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Under which lm-eval caches what it has tokenised."""
        return self._model.ref.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with BOS if the tokenizer adds it, unless the text already starts with it."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode([self.prefix_token_id])))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts; those longer than a context are read in windows that do not overlap."""
        windows = [
            (place, make_disjoint_window(window))
            for place, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
        ]
        queries = [self._query(requests[place].args[0], "", *window) for place, window in windows]
        totals = [0.0] * len(requests)
        for (place, _), (total, _) in zip(windows, self._scored(queries, reads_targets=True), strict=True):
            totals[place] += total
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop text.

        Raises:
            UserError: for a request that wants samples.
        """
        asked = [self._open(*request.args) for request in requests]
        answers = [""] * len(requests)
        for batch in length_sorted(asked, lambda one: len(one[0].prompt_ids), self._rows):
            made = self._continued([asked[place][0] for place in batch], [asked[place][1] for place in batch])
            for place, text in zip(batch, made, strict=True):
                answers[place] = text
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._scored([self._query(*texts, context, target) for texts, context, target in requests])

    def _query(self, prompt: str, target: str, context: Sequence[int], ids: Sequence[int]) -> Query:
        """Context and continuation; what is too long for the model is cut off on the left."""
        kept = context[-(self.max_length + 1 - len(ids)) :]
        return Query(prompt, target, tuple(kept), tuple(ids))

    def _scored(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each target, and whether greedy decoding would write it."""
        found: list[tuple[float, bool]] = [(0.0, False)] * len(queries)
        lengths = [len(query.prompt_ids) + len(query.target_ids) for query in queries]
        for batch in length_sorted(lengths, int, self._rows):
            asked = [queries[place] for place in batch]
            for place, query, scores in zip(
                batch, asked, self._edited.score(asked, reads_targets=reads_targets), strict=True
            ):
                is_greedy = all(score.best == id_ for score, id_ in zip(scores, query.target_ids, strict=True))
                found[place] = (sum(score.logprob for score in scores), is_greedy)
        return found

    def _open(self, context: str, options: Mapping[str, Any]) -> tuple[Query, list[str]]:
        """A context to continue, and the texts that end it."""
        wanted = normalize_gen_kwargs(dict(options), self.max_gen_toks)
        if wanted.get("do_sample"):
            raise UserError("capability: this task draws samples; answers here are greedy", fix="do_sample: false")
        limit = int(wanted["max_gen_toks"])
        if limit >= self.max_length:
            raise UserError(
                f"capability: answers of up to {limit} tokens do not fit into the {self.max_length} positions of "
                f"{self._model.ref.name}",
                fix="a task with shorter answers",
            )
        ids = self.tok_encode(context)[-(self.max_length - limit) :]
        eos = str(self.tokenizer.decode([self.eot_token_id]))
        return Query(context, "", tuple(ids), (ids[0],) * limit), handle_stop_sequences(wanted.get("until"), eos)

    def _continued(self, queries: Sequence[Query], stops: Sequence[Sequence[str]]) -> list[str]:
        """The texts of a batch without their stop texts."""
        written: list[list[int]] = [[] for _ in queries]

        def ends(row: int, id_: int) -> bool:
            written[row].append(id_)
            text = self.tokenizer.decode(written[row])
            return id_ == self.eot_token_id or any(stop in text for stop in stops[row])

        return [
            postprocess_generated_text(
                str(self.tokenizer.decode(ids, skip_special_tokens=True)), stop=list(stop), think_end_token=None
            )
            for ids, stop in zip(self._edited.generate_until(queries, ends), stops, strict=True)
        ]
