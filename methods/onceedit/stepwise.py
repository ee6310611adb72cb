"""The step-by-step decoder: at every step both models read each row's last token, and the row gets one more."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.batching import left_padded
from harness.models.precision import at_least_fp32
from harness.tokens import Query
from methods.onceedit.answers import Answers
from methods.onceedit.sync import Companion, Written

if TYPE_CHECKING:
    from methods.onceedit.ensemble import EnsembleModel
    from methods.onceedit.plugin import Reading


class Stepwise:
    """Greedy decoding of a batch, one step after another.

    The target model runs with the batch shapes that it has when it is unedited.

    Args:
        model: the ensemble.
        queries: the questions.
        answers: what is read; the caller adds the tokens that are chosen.

    Attributes:
        alpha_N: alpha of each prompt.
    """

    def __init__(self, model: "EnsembleModel", queries: Sequence[Query], answers: Answers) -> None:
        self._model, self._answers = model, answers
        self._transcripts = model.transcripts(queries)
        self._companion = Companion(model.plugin, len(queries))
        self.alpha_N, _, self._is_silent = model.routing(queries, self._companion)
        self._prompts_fed = self._companion.n_fed
        batch = left_padded([query.prompt_ids for query in queries], model.target.device)
        self._ids_BT, self._mask_BT, self._positions_BT = batch.ids_BT, batch.mask_BT, batch.positions_BT
        self._cache = None
        self._mapped: Mapping[int, int] = {}
        self._step = 0

    @property
    def n_fed(self) -> int:
        """Number of ids fed to the plug-in after the prompts."""
        return self._companion.n_fed - self._prompts_fed

    def run(self) -> None:
        """Write all answers."""
        while self._answers.unfinished:
            for row, (token, is_changed) in self.tokens(self._step).items():
                self._answers.add(row, token, is_changed=is_changed)

    def tokens(self, step: int, counted: Collection[int] | None = None) -> dict[int, tuple[int, bool]]:
        """The next token of each row that gets one in a step that has not been run yet.

        Args:
            step: number of tokens before the wanted ones, which the answers must have; earlier steps are run if necessary.
            counted: rows whose step is counted for the diagnostics; all by default.

        Returns:
            The token, and whether it is not the target model's own choice.
        """
        while self._step < step:
            self.read()
        rows, hidden_ND, reading, written = self.read()
        logits_BV = at_least_fp32(self._model.target.logits(hidden_ND)[rows])
        fused = [place for place, row in enumerate(rows) if not self._is_silent[row]]
        of_prompt_F = self.alpha_N[[rows[place] for place in fused]]
        alpha_F = self._model.alpha(reading, of_prompt_F, [written[place] for place in fused])
        places: list[int] = []
        columns: list[Tensor] = []
        for part, choice in self._model.choices(logits_BV, fused, reading, alpha_F):
            is_counted = None if counted is None else [rows[place] in counted for place in part]
            self._model.count(choice, [written[place] for place in part], is_counted)
            mapped_B = torch.full_like(choice.tokens_B, -1)
            if self._model.anchor_map is not None:
                mapped_B = self._model.anchor_map.ids(choice.tokens_B, choice.anchors_B)
            places += part
            columns.append(torch.stack([choice.tokens_B, choice.is_changed_B.long(), mapped_B]))
        found = list(zip([rows[place] for place in places], *torch.cat(columns, dim=1).tolist(), strict=True))
        self._mapped = {row: plugin_id for row, _, _, plugin_id in found if plugin_id >= 0}
        return {row: (token, bool(is_changed)) for row, token, is_changed, _ in found}

    def read(self) -> "tuple[list[int], Tensor, Reading | None, list[Written]]":
        """Let both models read the last token of each row, and take the next step without choosing tokens.

        Returns:
            The rows that get a token in this step, the target model's final hidden states of all N rows, the plug-in's
            outputs for those of the former that it may change (None if there are none), and the text so far of all of the
            former.
        """
        step, before = self._step, [ids[: self._step] for ids in self._answers.made]
        if step:
            # finished rows repeat their last token to keep the batch shape; their further outputs are ignored
            self._ids_BT = torch.tensor([ids[-1:] for ids in before], device=self._ids_BT.device)
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._ids_BT)], dim=-1)
            self._positions_BT = self._positions_BT[:, -1:] + 1
        output = self._model.target.model.base_model(
            input_ids=self._ids_BT,
            attention_mask=self._mask_BT,
            position_ids=self._positions_BT,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self._step = output.past_key_values, step + 1
        rows = self._answers.continuing(step)
        written = {n: self._transcripts[n].after(before[n]) for n in rows}
        heard = {n: text for n, text in written.items() if not self._is_silent[n]}
        reading = self._companion.read(heard, self._mapped) if heard else None
        return rows, output.last_hidden_state[:, -1], reading, list(written.values())
