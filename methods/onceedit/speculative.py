"""Speculative decoding of the ensemble: several tokens per forward pass of the target model, identical to stepwise decoding.

The edited plug-in drafts the next tokens of a row, and the target model reads all of them in one forward pass. The fused
arg-max is then known at every position up to the first token that is not the draft. As in the step-by-step decoder, the
plug-in's distribution at a position is the one after its own tokens of the text up to there; drafting computes it anyway.

Forward passes over several ids round differently from passes over one. A decision that rounding could change (see
`rounding`) is left to the step-by-step decoder: it reads the accepted tokens with its own batch shapes and caches, once
every row of the batch has come as far. So it takes each step at most once.

Drafts are proposed token by token, as anchors, if alpha is at least one half, because fusion then prefers the plug-in's
tokens; otherwise their text is tokenised afresh by the target model's tokenizer. Where a text repeats itself, its earlier
continuation is a draft that costs nothing, and the plug-in reads all of it in one pass too. A row whose alpha is below the
gate gets the target model's own tokens, so the plug-in reads at most its prompt.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.precision import at_least_fp32
from harness.models.submodels import at_places
from harness.tokens import Query
from methods.onceedit.answers import Answers
from methods.onceedit.choose import Choice
from methods.onceedit.plugin import Reading
from methods.onceedit.rounding import is_doubtful, logit_error
from methods.onceedit.slots import Slots
from methods.onceedit.stepwise import Stepwise
from methods.onceedit.sync import Companion, Written
from methods.onceedit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from methods.onceedit.ensemble import EnsembleModel

MOST_DRAFTS = 16
"""Longest draft of a row."""

EXTRA_ID = 0.1
"""Cost of one more id in a forward pass of a few ids, relative to that of a pass over one; measured .02 to .1 on CPUs."""

REPEATED_IDS = 3
"""A text is taken to repeat itself if its last ids, this many, occur earlier in it."""

_FIRST_RATE, _MEMORY = 0.8, 0.8


@dataclass
class Pace:
    """Number of drafts per block: the one with the most tokens per cost at the observed acceptance rate.

    Attributes:
        per_block, per_draft: cost of a block without drafts, and of each draft; only their ratio matters.
        fixed: number of drafts of every block; None to choose it.
        rate: share of drafts accepted so far, recent ones counting most.
    """

    per_block: float
    per_draft: float
    fixed: int | None = None
    rate: float = _FIRST_RATE

    @classmethod
    def of_plugin(cls, plugin_cost: float, fixed: int | None = None) -> "Pace":
        """With k drafts of the plug-in: one pass over k + 1 ids of the target model and k + 1 passes of the plug-in.

        Args:
            plugin_cost: cost of a pass of the plug-in relative to one of the target model.
            fixed: see the class.
        """
        return cls(1 + plugin_cost, EXTRA_ID + plugin_cost, fixed)

    @classmethod
    def of_copies(cls, plugin_cost: float) -> "Pace":
        """With k copied drafts: one pass over k + 1 ids of each model that reads the row."""
        return cls(1 + plugin_cost, EXTRA_ID * (1 + plugin_cost))

    def drafts(self, most: int) -> int:
        """Number of drafts of the next block, at most `most`."""
        most = min(most, MOST_DRAFTS)
        return min(self.fixed, most) if self.fixed is not None else max(range(most + 1), key=self.tokens_per_cost)

    def note(self, is_accepted: bool) -> None:
        """Count a draft that was compared with the token in its place."""
        self.rate = _MEMORY * self.rate + (1 - _MEMORY) * is_accepted

    def tokens_per_cost(self, drafts: int) -> float:
        """Expected tokens per cost of a block with this many drafts."""
        return sum(self.rate**n for n in range(drafts + 1)) / (self.per_block + self.per_draft * drafts)


@dataclass
class Draft:
    """Proposed tokens of a row, and the plug-in's output before each of them.

    Attributes:
        pace: the pace that learns whether its tokens are right.
        wanted: number of tokens to propose.
        prefers_own: whether to propose the plug-in's own anchors instead of tokenising their text.
        ids: the proposed ids of the target model.
        further: ids that spell the rest of the plug-in's last token.
        readings: the plug-in's output after each text.
        guess: what the plug-in would propose next; not read by the target model.
        is_done: whether no more tokens are to be proposed.
        not_copied: what a copy would have proposed first, if the draft is none although there was one.
    """

    pace: Pace
    wanted: int
    prefers_own: bool
    ids: list[int] = field(default_factory=list)
    further: list[int] = field(default_factory=list)
    readings: dict[str, Reading] = field(default_factory=dict)
    guess: int | None = None
    is_done: bool = False
    not_copied: int | None = None


@dataclass(frozen=True, eq=False)
class Decision:
    """The tokens at some positions of a block.

    Attributes:
        places: the positions.
        choice: their tokens.
        is_doubtful_B: whether rounding could have changed each of them.
    """

    places: Sequence[int]
    choice: Choice
    is_doubtful_B: Tensor

    def on_host(self) -> list[list[int]]:
        """Tokens, doubts, and whether the tokens are not the target model's own, in one transfer."""
        columns = [self.choice.tokens_B, self.is_doubtful_B.long(), self.choice.is_changed_B.long()]
        found: list[list[int]] = torch.stack(columns).tolist()
        return found


class Proposer:
    """Turns the plug-in's tokens into tokens of the target model."""

    def __init__(self, model: "EnsembleModel") -> None:
        llm, plugin_ids_A = model.anchored.llm.state, model.anchored.plugin.state.anchor_ids_A.tolist()
        self._tokenizer = model.target.tokenizer
        self._plugin = Vocabulary.of(model.plugin.tokenizer)
        self._llm = model.vocabulary
        self._is_same = model.have_one_tokenizer
        # where the owner is not known yet, the anchor's own token is the best guess
        owners_A = torch.where(llm.owner_A < 0, llm.anchor_ids_A, llm.owner_A)
        self._fused = dict(zip(plugin_ids_A, owners_A.tolist(), strict=True))
        own = dict(zip(plugin_ids_A, llm.anchor_ids_A.tolist(), strict=True))
        self._unfused = own if model.anchored.keep_own else self._fused

    def extend(
        self, draft: Draft, plugin_id: int, head: Sequence[int], text: Callable[[Sequence[int]], Written]
    ) -> None:
        """Add the next token to a draft, unless it is long enough or the plug-in's token has no counterpart.

        Args:
            draft: the draft, whose whole text the plug-in has just read.
            plugin_id: the plug-in's most probable token after it.
            head: ids of the target model before the draft.
            text: the text of the row after a draft.
        """
        proposed = draft.further or self._ids(draft, plugin_id, text(draft.ids))
        if len(draft.ids) >= draft.wanted or not proposed or len(draft.readings) > 2 * draft.wanted:
            draft.guess, draft.is_done = next(iter(proposed), None), True
            return
        draft.ids, draft.further = [*draft.ids, proposed[0]], proposed[1:]
        if not self._llm.spell(proposed[:1]):
            # a special token: the text that the plug-in reads does not change, so neither does what it proposes
            draft.ids += proposed[:1] * (draft.wanted - len(draft.ids))
            draft.guess, draft.is_done = proposed[0], True
        elif not (self._is_same or draft.prefers_own or draft.further):
            draft.ids = self._merged(draft.ids, head, text(draft.ids))

    def _ids(self, draft: Draft, plugin_id: int, written: Written) -> list[int]:
        """Ids of the target model for the plug-in's token; none if it adds nothing to the text."""
        table = self._fused if draft.prefers_own else self._unfused
        if plugin_id in table:
            return [table[plugin_id]]
        piece = self._plugin.spell([plugin_id]).decode(errors="ignore")
        before, after = self._tokenizer([written.text, written.text + piece])["input_ids"]
        return list(after[len(before) :]) if after[: len(before)] == before else []

    def _merged(self, ids: list[int], head: Sequence[int], written: Written) -> list[int]:
        """The draft as the target model's tokenizer would write it after `head`; `ids` if it writes `head` differently."""
        whole = list(self._tokenizer(written.text)["input_ids"])
        is_continued = not written.is_inside_character and whole[: len(head)] == list(head)
        return whole[len(head) :] or ids if is_continued else ids


class Speculation:
    """Greedy decoding of a batch in blocks.

    Args:
        model: the ensemble.
        queries: the questions.
        answers: where the chosen tokens are added.
        drafts: number of drafts of the plug-in per block; by default as many as have paid, or copies of the text itself.

    Attributes:
        counts: `blocks` of all rows, `drafted` tokens, of these the `copied` and the `accepted` ones, and tokens that were
            `settled` step by step.
    """

    def __init__(
        self, model: "EnsembleModel", queries: Sequence[Query], answers: Answers, drafts: int | None = None
    ) -> None:
        self._model, self._queries, self._answers = model, queries, answers
        self.counts: Counter[str] = Counter()
        self._transcripts = model.transcripts(queries)
        self._companion = Companion(model.plugin, len(queries), crops=True)
        self._alpha_N, weights, self._is_silent = model.routing(queries, self._companion)
        self._prompts_fed = self._companion.n_fed
        self._prefers_own = [weight >= 0.5 for weight in weights]
        cost = model.plugin.model.num_parameters() / model.target.model.num_parameters()
        self._pace = [Pace.of_plugin(cost, drafts) for _ in queries]
        self._copying = [Pace.of_copies(0.0 if is_silent else cost) for is_silent in self._is_silent]
        self._copies = drafts is None
        self._slots = Slots(model.target.model, len(queries), crops=True)
        self._held = {n: list(query.prompt_ids) for n, query in enumerate(queries)}
        self._stepwise: Stepwise | None = None
        self._doubtful: set[int] = set()

    @torch.no_grad()
    def run(self) -> None:
        """Write all answers."""
        while unfinished := self._answers.unfinished:
            if rows := [n for n in unfinished if n not in self._doubtful]:
                self._block(rows, unfinished)
            else:
                self._settle()

    @property
    def n_fed(self) -> int:
        """Number of ids fed to the plug-in after the prompts."""
        return self._companion.n_fed - self._prompts_fed + (self._stepwise.n_fed if self._stepwise else 0)

    def _block(self, rows: Sequence[int], unfinished: Sequence[int]) -> None:
        """Draft, verify and accept: at least one more token of each row, unless it is left to the step-by-step decoder."""
        drafts = self._draft(rows, unfinished)
        hidden_SD, row_S, written = self._verify(drafts, unfinished)
        logits_SV = at_least_fp32(self._model.target.logits(hidden_SD))
        self.counts.update(blocks=len(drafts), drafted=sum(len(draft.ids) for draft in drafts.values()))
        self.counts["copied"] += sum(len(draft.ids) for n, draft in drafts.items() if draft.pace is self._copying[n])
        if len(worth := _worth_deciding(drafts, logits_SV)) < len(row_S):
            logits_SV, row_S, written = (
                logits_SV[worth],
                [row_S[place] for place in worth],
                [written[place] for place in worth],
            )
        readings = [drafts[n].readings.get(text.text) for n, text in zip(row_S, written, strict=True)]
        decisions = self._decide(logits_SV, row_S, written, readings)
        tokens, is_doubtful, is_changed = [0] * len(row_S), [False] * len(row_S), [False] * len(row_S)
        for decision in decisions:
            for place, token, *flags in zip(decision.places, *decision.on_host(), strict=True):
                tokens[place], (is_doubtful[place], is_changed[place]) = token, map(bool, flags)
        counted: list[bool] = []
        at = 0
        for n, draft in drafts.items():
            before, places = len(self._answers.made[n]), range(at, at + len(draft.ids) + 1)
            for place, proposed in zip(places, [*draft.ids, None], strict=True):
                if is_doubtful[place]:
                    self._doubtful.add(n)
                    break
                self._answers.add(n, tokens[place], is_changed=is_changed[place])
                expected = draft.guess if proposed is None else proposed
                if expected is not None:
                    draft.pace.note(expected == tokens[place])
                if proposed != tokens[place] or self._answers.is_over(n):
                    break
            n_made = len(self._answers.made[n]) - before
            if draft.not_copied is not None and n_made:
                self._copying[n].note(draft.not_copied == self._answers.made[n][before])
            counted += [offset < n_made for offset in range(len(places))]
            self.counts["accepted"] += sum(
                a == b for a, b in zip(draft.ids, self._answers.made[n][before:], strict=False)
            )
            at = places.stop
        for decision in decisions:
            texts = [written[place] for place in decision.places]
            self._model.count(decision.choice, texts, [counted[place] for place in decision.places])

    def _draft(self, rows: Sequence[int], unfinished: Sequence[int]) -> dict[int, Draft]:
        """Propose tokens for some rows, and let the plug-in read the text before each token and after the last."""
        drafts = {n: self._planned(n) for n in rows}
        speaking = [n for n in unfinished if not self._is_silent[n]]
        unread = {n: drafts[n] for n in rows if not self._is_silent[n]}
        while unread:
            texts = {n: self._texts_along(n, unread[n]) if n in unread else [] for n in speaking}
            readings = self._companion.read_along(texts)
            not_along: dict[int, Draft] = {}
            for n, draft in unread.items():
                if readings[n][0] is None:  # the draft changes the plug-in's tokens in front of it
                    not_along[n] = drafts[n] = Draft(self._pace[n], 0, self._prefers_own[n])
                    continue
                pairs = zip(texts[n], readings[n], strict=True)
                draft.readings |= {written.text: reading for written, reading in pairs if reading is not None}
            if unread := {n: draft for n, draft in unread.items() if not draft.is_done}:
                logits_BU = torch.cat([reading.logits_BU for n in unread if (reading := readings[n][-1]) is not None])
                for (n, draft), plugin_id in zip(unread.items(), logits_BU.argmax(dim=-1).tolist(), strict=True):
                    head = [*self._queries[n].prompt_ids, *self._answers.made[n]]
                    self._model.proposer.extend(draft, plugin_id, head, partial(self._text, n))
            unread = not_along | {n: draft for n, draft in unread.items() if not draft.is_done}
        for n, draft in drafts.items():
            if not self._is_silent[n]:
                missing = [
                    j for j in range(len(draft.ids) + 1) if self._text(n, draft.ids[:j]).text not in draft.readings
                ]
                if missing:
                    draft.ids, draft.guess = draft.ids[: missing[0] - 1], None
        return drafts

    def _planned(self, row: int) -> Draft:
        """A draft that copies what followed the last ids of the text before, or else one that is still empty."""
        head = [*self._queries[row].prompt_ids, *self._answers.made[row]]
        most = self._answers.most(row) - 1
        speaks, plugin, copying = not self._is_silent[row], self._pace[row], self._copying[row]
        wanted = plugin.drafts(most) if speaks else 0
        otherwise = plugin.tokens_per_cost(wanted) if speaks else copying.tokens_per_cost(0)
        copied = repeated(head, max(1, copying.drafts(most))) if self._copies and most else []
        if copied and copying.tokens_per_cost(len(copied)) > otherwise:
            return Draft(copying, len(copied), self._prefers_own[row], copied, is_done=True)
        draft = Draft(plugin, wanted, self._prefers_own[row], is_done=not speaks)
        draft.not_copied = next(iter(copied), None)
        return draft

    def _texts_along(self, row: int, draft: Draft) -> list[Written]:
        """The texts that the plug-in has to read next: along a finished draft, or after one that is being written."""
        first = 0 if draft.is_done else len(draft.ids)
        return [self._text(row, draft.ids[:j]) for j in range(first, len(draft.ids) + 1)]

    def _verify(
        self, drafts: Mapping[int, Draft], unfinished: Sequence[int]
    ) -> tuple[Tensor, list[int], list[Written]]:
        """Let the target model read the drafts.

        Returns:
            Its final hidden states at each position, S × D, and of each position the row and the text so far.
        """
        if len(unfinished) < len(self._held):
            self._slots.keep([place for place, n in enumerate(self._held) if n in unfinished])
            self._held = {n: self._held[n] for n in unfinished}
        for n, draft in drafts.items():
            self._held[n] = [*self._queries[n].prompt_ids, *self._answers.made[n], *draft.ids]
        again = [len(drafts[n].ids) + 1 if n in drafts else 0 for n in self._held]
        self._slots.hold(list(self._held.values()), again)
        place = {n: row for row, n in enumerate(self._held)}
        at_S = [(n, j) for n, draft in drafts.items() for j in range(len(draft.ids) + 1)]
        hidden_SD = at_places(self._slots.chunk_BCD, [(place[n], j - len(drafts[n].ids) - 1) for n, j in at_S])
        return hidden_SD, [n for n, _ in at_S], [self._text(n, drafts[n].ids[:j]) for n, j in at_S]

    def _decide(
        self, logits_SV: Tensor, row_S: Sequence[int], written: Sequence[Written], readings: Sequence[Reading | None]
    ) -> "list[Decision]":
        """Choose the token at each position: the fused one where the plug-in has read the text, else the target model's own."""
        chooser, error_S = self._model.chooser, logit_error(logits_SV, self._model.target.model.dtype)
        own = [place for place, reading in enumerate(readings) if reading is None]
        fused = [place for place, reading in enumerate(readings) if reading is not None]
        decisions = []
        if own:
            choice = chooser.gated(logits_SV[own])
            decisions.append(Decision(own, choice, is_doubtful(chooser, choice, logits_SV[own], error_S[own])))
        if fused:
            reading = Reading.joined([reading for reading in readings if reading is not None])
            of_prompt_F = self._alpha_N[[row_S[place] for place in fused]]
            alpha_F = self._model.alpha(reading, of_prompt_F, [written[place] for place in fused])
            choice = chooser.decide(logits_SV[fused], reading.probs_BU, alpha_F)
            error_s_F = logit_error(reading.logits_BU, self._model.plugin.model.dtype)
            if self._model.hparams.per_step_alpha:
                error_s_F = 2 * error_s_F  # alpha has the error of one more logit
            doubt_F = is_doubtful(chooser, choice, logits_SV[fused], error_S[fused], error_s_F)
            if self._model.hparams.per_step_alpha:
                doubt_F |= (alpha_F - chooser.gate).abs() <= error_s_F
            decisions.append(Decision(fused, choice, doubt_F))
        return decisions

    def _settle(self) -> None:
        """Let the step-by-step decoder choose the token of the rows that wait for it and are furthest behind."""
        self._stepwise = self._stepwise or Stepwise(self._model, self._queries, self._answers)
        made = self._answers.made
        step = min(len(made[n]) for n in self._doubtful)
        rows = [n for n in self._doubtful if len(made[n]) == step]
        tokens = self._stepwise.tokens(step, rows)
        for n in rows:
            token, is_changed = tokens[n]
            self._answers.add(n, token, is_changed=is_changed)
            self._doubtful.discard(n)
            self.counts["settled"] += 1

    def _text(self, row: int, drafted: Sequence[int]) -> Written:
        return self._transcripts[row].after([*self._answers.made[row], *drafted])


def repeated(ids: Sequence[int], wanted: int) -> list[int]:
    """Continue ids as they continued where their last `REPEATED_IDS` occurred before; empty if they did not."""
    last = list(ids[-REPEATED_IDS:])
    for start in range(len(ids) - REPEATED_IDS - 1, -1, -1):
        if list(ids[start : start + REPEATED_IDS]) == last:
            period = len(ids) - REPEATED_IDS - start
            return [ids[len(ids) - period + n % period] for n in range(wanted)]
    return []


def _worth_deciding(drafts: Mapping[int, Draft], logits_SV: Tensor) -> list[int]:
    """Positions up to which drafts are likely to be right; cuts the drafts there.

    Fusing costs more than comparing. Where the target model weighs more than the plug-in, a draft that is not its own token
    is probably wrong, and then nothing after it counts.
    """
    own, at = logits_SV.argmax(dim=-1).tolist(), 0
    worth: list[int] = []
    for draft in drafts.values():
        width = len(draft.ids) + 1
        differs = (j for j, token in enumerate(draft.ids) if token != own[at + j])
        if not draft.prefers_own and (first := next(differs, None)) is not None:
            draft.guess, draft.ids = draft.ids[first], draft.ids[:first]
        worth += range(at, at + len(draft.ids) + 1)
        at += width
    return worth
