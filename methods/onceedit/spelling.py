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
    """

    def __init__(self, model: "EnsembleModel", queries: Sequence[Query]) -> None:
        self._tokenizer, self._queries = model.target.tokenizer, queries
        self._transcripts = model.transcripts(queries)
        self._pieces = model.vocabulary.text_bytes

    def is_complete(self, row: int, ids: Sequence[int]) -> bool:
        """Whether an answer has as many of the target model's own tokens as the target, all of whole words, or is over."""
        if not self._pieces.get(ids[-1]):
            return True
        if len(ids) < 2 or not self._pieces[ids[-1]][:1].isspace():
            return False
        own = self._tokenised(row, ids[:-1])
        return own is not None and len(own) >= len(self._queries[row].target_ids)

    def own(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """As many of the target model's own tokens as the target has; None if the text has fewer or cannot be tokenised."""
        wanted = len(self._queries[row].target_ids)
        n_text = next((n for n, id_ in enumerate(ids) if not self._pieces.get(id_)), len(ids))
        own = self._tokenised(row, ids[:n_text])
        return None if own is None or len(own) + len(ids) - n_text < wanted else [*own, *ids[n_text:]][:wanted]

    def _tokenised(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """The tokens of a continuation's text; None inside a character, and if they change the prompt's."""
        text, is_inside_character = self._transcripts[row].after(ids)
        prompt_ids = list(self._queries[row].prompt_ids)
        whole: list[int] = self._tokenizer(text)["input_ids"]
        if is_inside_character or whole[: len(prompt_ids)] != prompt_ids:
            return None
        return whole[len(prompt_ids) :]


def in_own_tokens(model: "EnsembleModel", queries: Sequence[Query], made: Sequence[Sequence[int]]) -> list[list[int]]:
    """Write answers to the end of a word, and return them in the target model's own tokens, each as long as its target.

    Args:
        model: the ensemble.
        queries: the questions.
        made: the tokens that the ensemble chose, returned where an answer is over before it is as long.
    """
    spelling, so_far = Spelling(model, queries), [list[int]() for _ in queries]

    def ends(row: int, id_: int) -> bool:
        so_far[row].append(id_)
        return spelling.is_complete(row, so_far[row])

    limits = [PIECES * len(query.target_ids) + FURTHER for query in queries]
    longer = [replace(query, target_ids=query.target_ids[:1] * n) for query, n in zip(queries, limits, strict=True)]
    written = [spelling.own(row, ids) for row, ids in enumerate(model.generate_until(longer, ends))]
    return [list(chosen) if own is None else own for own, chosen in zip(written, made, strict=True)]
