"""The ensemble's text in the tokens in which the target model itself would write it.

Fusion chooses among tokens that both models have. A word that is one token to the target model and several to the plug-in is
therefore written in the plug-in's pieces (`Suz`, `uki`). An answer of as many ids as the target has would end in the middle of
the word, and its first ids would not be those of the same text in the target model's own tokens.

Such an answer is written on to the end of a word, and the text is tokenised as the target model's tokenizer does it. What the
target model writes by itself stays as it is, token by token.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.tokens import Query

if TYPE_CHECKING:
    from methods.onceedit.ensemble import EnsembleModel

PIECES, FURTHER = 4, 8
"""An answer is written on to at most this many ids per id of the target, and so many more."""


class Spelling:
    """Tokenises the answers of a batch as the target model does.

    Args:
        model: the ensemble.
        queries: the questions.

    Attributes:
        longer: the questions, with room to finish a word that is written in pieces.
    """

    def __init__(self, model: "EnsembleModel", queries: Sequence[Query]) -> None:
        self._tokenizer, self._queries = model.target.tokenizer, queries
        self._transcripts = model.transcripts(queries)
        self._pieces = model.vocabulary.text_bytes
        limits = [PIECES * len(query.target_ids) + FURTHER for query in queries]
        self.longer = [
            replace(query, target_ids=query.target_ids[:1] * n) for query, n in zip(queries, limits, strict=True)
        ]

    def ends(self, row: int, ids: Sequence[int], is_changed: bool) -> bool:
        """Whether an answer is long enough: as many ids as the target has, or the same number of its own after whole words.

        Args:
            row: the question.
            ids: its answer so far.
            is_changed: whether it has tokens that the target model would not have chosen.
        """
        if not is_changed:
            return len(ids) == self._wanted(row)
        if self._n_text(ids) < len(ids):
            return self.own(row, ids) is not None
        return self._pieces[ids[-1]][:1].isspace() and self.own(row, ids[:-1]) is not None

    def answer(self, row: int, ids: Sequence[int]) -> list[int]:
        """The answer, as long as the target: in the target model's own tokens, or as it was chosen if that is impossible."""
        own = self.own(row, ids)
        return list(ids[: self._wanted(row)]) if own is None else own

    def own(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """As many of the target model's own tokens as the target has.

        The first id without a text, such as the end of text, and those after it stay as they are.

        Returns:
            The tokens; None if there are fewer, and if the text ends inside a character or changes the prompt's tokens.
        """
        text, is_inside_character = self._transcripts[row].after(ids[: self._n_text(ids)])
        prompt_ids = list(self._queries[row].prompt_ids)
        whole: list[int] = self._tokenizer(text)["input_ids"]
        if is_inside_character or whole[: len(prompt_ids)] != prompt_ids:
            return None
        own = [*whole[len(prompt_ids) :], *ids[self._n_text(ids) :]][: self._wanted(row)]
        return own if len(own) == self._wanted(row) else None

    def _n_text(self, ids: Sequence[int]) -> int:
        """Number of ids before the first one without a text."""
        return next((n for n, id_ in enumerate(ids) if not self._pieces.get(id_)), len(ids))

    def _wanted(self, row: int) -> int:
        return len(self._queries[row].target_ids)
