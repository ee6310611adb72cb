"""Keeping two tokenizers in sync: the text decoded from the target model's ids, and the plug-in that reads it.

The plug-in always reads its own tokenizer's encoding of the whole text so far. The text is retokenised in full at every
step, which takes about ten microseconds, while a forward pass takes milliseconds. Retokenising only the end would not be
safe: in a byte-pair encoding without pre-tokenisation, such as Llama's, one more letter can change tokens arbitrarily far
back (if bc merges before ab, cd before bc and so on, letters are paired from the right). Ids that did not change are not
recomputed, however, but stay in the plug-in's cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from harness.models.submodels import at_places
from harness.tokens import Query
from methods.onceedit.plugin import EditedPlugin, Reading
from methods.onceedit.slots import Slots
from methods.onceedit.vocabulary import Vocabulary, readable


class Written(NamedTuple):
    """The text of a target row so far.

    Attributes:
        text: the text without an incomplete last character.
        is_inside_character: whether there is such a character.
    """

    text: str
    is_inside_character: bool


@dataclass(frozen=True, slots=True)
class Transcript:
    """Decodes a query and its continuation from the target model's ids to text.

    Attributes:
        vocabulary: the target model's vocabulary.
        query: the prompt and its ids.
        starts_at_prompt: whether a continuation begins where the prompt ends. If not, joint tokenisation has removed ids
            from the end of the prompt, and the text is decoded from the remaining ids.
    """

    vocabulary: Vocabulary
    query: Query
    starts_at_prompt: bool

    def after(self, ids: Sequence[int]) -> Written:
        """The text after the prompt ids followed by `ids`."""
        if self.starts_at_prompt:
            return Written(*readable(self.query.prompt.encode() + self.vocabulary.spell(ids)))
        return Written(*readable(self.vocabulary.spell_from_start([*self.query.prompt_ids, *ids], self.query.prompt)))


class Companion:
    """Runs the plug-in alongside a batch of target rows during generation, with a key-value cache.

    Args:
        plugin: the plug-in.
        n_rows: number of target rows.
        crops: as in `Slots`.
    """

    def __init__(self, plugin: EditedPlugin, n_rows: int, *, crops: bool = False) -> None:
        self._plugin = plugin
        self._slots = Slots(plugin.model, n_rows, crops=crops)
        self._ids: dict[int, list[int]] = {row: [] for row in range(n_rows)}
        self._is_behind: set[int] = set()

    @property
    def n_fed(self) -> int:
        """Number of ids fed to the plug-in so far."""
        return self._slots.n_fed

    def read(self, written: Mapping[int, Written], mapped: Mapping[int, int] = MappingProxyType({})) -> Reading:
        """The plug-in's outputs after each row; rows that are not given are dropped.

        Args:
            written: the current text of each row.
            mapped: the plug-in's id for the token that a row generated since the last call. Such a row is extended by this
                id instead of being retokenised, unless the plug-in has not yet seen all of the preceding text.
        """
        self._keep(written)
        extended = (written.keys() & mapped.keys()) - self._is_behind
        for row in extended:
            self._ids[row] = [*self._ids[row], mapped[row]]
        afresh = [row for row in written if row not in extended]
        for row, ids in zip(afresh, self._plugin.tokenize([written[row].text for row in afresh]), strict=True):
            self._ids[row] = ids
        self._is_behind = {row for row in afresh if written[row].is_inside_character}
        return Reading(self._plugin, self._slots.hold(list(self._ids.values())))

    def read_along(self, texts: Mapping[int, Sequence[Written]]) -> dict[int, list[Reading | None]]:
        """The plug-in's outputs after several texts of each row in one forward pass; rows that are not given are dropped.

        Args:
            texts: texts of each row, the last of which begins with all others. A row without any stays as it is.

        Returns:
            One reading per text; None where the ids of the last text do not begin with those of the text.
        """
        self._keep(texts)
        texts = {row: texts[row] for row in self._ids}
        encoded = iter(self._plugin.tokenize([text for of_row in texts.values() for text, _ in of_row]))
        again: list[int] = []
        places: list[tuple[int, int]] = []
        found: list[list[bool]] = []
        for place, row in enumerate(self._ids):
            parts = [next(encoded) for _ in texts[row]]
            whole = self._ids[row] = parts[-1] if parts else self._ids[row]
            is_read = [whole[: len(part)] == part for part in parts]
            found.append(is_read)
            behind = [len(whole) - len(part) for part, yes in zip(parts, is_read, strict=True) if yes]
            again.append(1 + max(behind, default=-1))
            places += [(place, -1 - n) for n in behind]
        self._slots.hold(list(self._ids.values()), again)
        readings = iter(Reading(self._plugin, at_places(self._slots.chunk_BCD, places)).split() if places else [])
        return {
            row: [next(readings) if yes else None for yes in is_read]
            for row, is_read in zip(self._ids, found, strict=True)
        }

    def _keep(self, rows: Mapping[int, object]) -> None:
        """Drop all other rows."""
        if len(rows) < len(self._ids):
            self._slots.keep([place for place, row in enumerate(self._ids) if row in rows])
            self._ids = {row: ids for row, ids in self._ids.items() if row in rows}


@dataclass(frozen=True, eq=False)
class AnchorMap:
    """Maps the target model's tokens to the plug-in's ids directly, without going through text.

    Attributes:
        plugin_ids_A: the plug-in's id of each anchor.
        of_token_V: the plug-in's id of each target token that is an anchor, else -1.
    """

    plugin_ids_A: Tensor
    of_token_V: Tensor

    @classmethod
    def of(cls, llm_ids_A: Tensor, plugin_ids_A: Tensor, n_tokens: int) -> "AnchorMap":
        """Build the map from paired anchor ids, on the target model's device."""
        plugin_ids_A = plugin_ids_A.to(llm_ids_A.device)
        of_token_V = torch.full((n_tokens,), -1, device=llm_ids_A.device)
        return cls(plugin_ids_A, of_token_V.index_copy(0, llm_ids_A, plugin_ids_A))

    def ids(self, tokens_B: Tensor, anchors_B: Tensor) -> Tensor:
        """The plug-in's id for each generated token, -1 if it has none.

        Args:
            tokens_B: the target model's tokens.
            anchors_B: the fused anchor that was decoded into the token; -1 where the target model's own token was kept.
        """
        return torch.where(anchors_B >= 0, self.plugin_ids_A[anchors_B], self.of_token_V[tokens_B])
