"""Two tokenizers kept in step: the text that the target model's ids spell, and the plug-in that reads along with it.

What the plug-in has read is always what its own tokenizer makes of the whole text so far. The text is tokenised as a
whole at every step, which takes some ten microseconds where a forward pass takes milliseconds. Starting over from a
place near the end would not be safe: a byte-pair encoding without a split into words, such as Llama's, has no bound on
how far back one more letter may change it (if bc merges before ab, cd before bc and so on, it pairs letters from the
right). What the change leaves alone is not computed again, though: it stays in the plug-in's cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from harness.tokens import Query
from methods.onceedit.plugin import EditedPlugin, Reading
from methods.onceedit.slots import Slots
from methods.onceedit.vocabulary import Vocabulary, readable


class Written(NamedTuple):
    """What a row of the target spells so far.

    Attributes:
        text: without a last character that is not complete.
        is_inside_character: whether there is one.
    """

    text: str
    is_inside_character: bool


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of a query and its continuation, from the target's ids.

    Attributes:
        vocabulary: the target's.
        query: prompt and its ids.
        starts_at_prompt: whether a continuation begins where the prompt ends. Joint tokenisation may have cut ids off the
            prompt; its text is then what the rest of them spells.
    """

    vocabulary: Vocabulary
    query: Query
    starts_at_prompt: bool

    def after(self, ids: Sequence[int]) -> Written:
        """The text once `ids` have followed the query's prompt ids."""
        if self.starts_at_prompt:
            return Written(*readable(self.query.prompt.encode() + self.vocabulary.spell(ids)))
        return Written(*readable(self.vocabulary.spell_from_start([*self.query.prompt_ids, *ids])))


class Companion:
    """The plug-in beside a batch of the target's rows while they are written, with a cache of what it has read."""

    def __init__(self, plugin: EditedPlugin, n_rows: int) -> None:
        self._plugin = plugin
        self._slots = Slots(plugin.model, n_rows)
        self._ids: dict[int, list[int]] = {row: [] for row in range(n_rows)}
        self._is_behind: set[int] = set()

    @property
    def n_fed(self) -> int:
        """Ids that the plug-in was fed so far."""
        return self._slots.n_fed

    def read(self, written: Mapping[int, Written], mapped: Mapping[int, int] = MappingProxyType({})) -> Reading:
        """What the plug-in says after each row; rows that are not named are given up.

        Args:
            written: what each row spells by now.
            mapped: ids of the plug-in that stand for what a row has said since the last call. Such a row goes on with
                that id instead of the tokenised text, unless the plug-in has not seen all that came before.
        """
        if len(written) < len(self._ids):
            self._slots.keep([place for place, row in enumerate(self._ids) if row in written])
            self._ids = {row: ids for row, ids in self._ids.items() if row in written}
        extended = (written.keys() & mapped.keys()) - self._is_behind
        for row in extended:
            self._ids[row] = [*self._ids[row], mapped[row]]
        afresh = [row for row in written if row not in extended]
        for row, ids in zip(afresh, self._plugin.tokenize([written[row].text for row in afresh]), strict=True):
            self._ids[row] = ids
        self._is_behind = {row for row in afresh if written[row].is_inside_character}
        return Reading(self._plugin, self._slots.hold(list(self._ids.values())))


@dataclass(frozen=True, eq=False)
class AnchorMap:
    """From what the target has said to an id of the plug-in, without a text in between.

    Attributes:
        plugin_ids_A: the plug-in's id of each anchor.
        of_token_V: the plug-in's id of each token of the target that is an anchor, else -1.
    """

    plugin_ids_A: Tensor
    of_token_V: Tensor

    @classmethod
    def of(cls, llm_ids_A: Tensor, plugin_ids_A: Tensor, n_tokens: int) -> "AnchorMap":
        """The map of paired anchors, on the target's device."""
        plugin_ids_A = plugin_ids_A.to(llm_ids_A.device)
        of_token_V = torch.full((n_tokens,), -1, device=llm_ids_A.device)
        return cls(plugin_ids_A, of_token_V.index_copy(0, llm_ids_A, plugin_ids_A))

    def ids(self, tokens_B: Tensor, anchors_B: Tensor) -> Tensor:
        """The plug-in's id of each step, -1 where it has none.

        Args:
            tokens_B: what the target has said.
            anchors_B: the fused anchor that the token stands for, -1 where the target's own token was taken.
        """
        return torch.where(anchors_B >= 0, self.plugin_ids_A[anchors_B], self.of_token_V[tokens_B])
