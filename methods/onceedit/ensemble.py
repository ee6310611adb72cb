"""The target model and an edited plug-in as one edited model; text keeps the two tokenizers in sync.

The plug-in sees text, never the target model's ids: at every step, the text so far is tokenised afresh and the plug-in
predicts the next token. If that text ends inside a UTF-8 character, the target model's own token is kept.

The target model runs with the same batch shapes as when it is unedited, row for row and step for step. So wherever its own
tokens are kept, they match the unedited model's bit for bit, and rounding is never counted as lost locality.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from harness.api import EditedModel, Ends, State, TokenScore
from harness.errors import UserError
from harness.models.loaded import LoadedModel
from harness.tokens import Query
from methods.onceedit.answers import Answers, RowEnds
from methods.onceedit.choose import HELD_BACK, AnchorChooser, Choice, Chooser
from methods.onceedit.decoders import make_decoder
from methods.onceedit.flops import EmbeddingTable, paper_flops
from methods.onceedit.forward import logits_at
from methods.onceedit.fusion import Projection
from methods.onceedit.given_texts import heard
from methods.onceedit.hparams import EDITS, OnceEditHparams
from methods.onceedit.memory import Gate
from methods.onceedit.pair import PairState
from methods.onceedit.plugin import EditedPlugin, Reading
from methods.onceedit.round_trip import ENOUGH
from methods.onceedit.scoring import scores
from methods.onceedit.speculative import Proposer, Speculation
from methods.onceedit.spelling import Spelling
from methods.onceedit.stepwise import Stepwise
from methods.onceedit.sync import AnchorMap, Companion, Transcript, Written
from methods.onceedit.union import Tokens, UnionChooser
from methods.onceedit.vocabulary import Vocabulary


class Routing(NamedTuple):
    """How far the N rows of a batch listen to the plug-in.

    Attributes:
        alpha_N: alpha of each prompt.
        weights: weight of the plug-in at the start of each answer.
        is_silent: whether it is below the gate at every step, so that the plug-in need not read the row.
    """

    alpha_N: Tensor
    weights: list[float]
    is_silent: list[bool]


class EnsembleModel(EditedModel):
    """OnceEdit's edited model; the target model's weights are never changed."""

    def __init__(
        self,
        target: LoadedModel,
        plugin: EditedPlugin,
        chooser: Chooser,
        hparams: OnceEditHparams,
        round_trip: float | None = None,
    ) -> None:
        self.round_trip = round_trip
        self.target, self.plugin, self.chooser, self.hparams = target, plugin, chooser, hparams
        self.vocabulary = Vocabulary.of(target.tokenizer)
        self.have_one_tokenizer = self.vocabulary.ids == Vocabulary.of(plugin.tokenizer).ids
        self._edited_prompts = {request.prompt for request in plugin.requests}
        self.gate = Gate(hparams, plugin)
        self._alpha_of: dict[str, float] = {}
        self._held_back = 0
        self._counts: Counter[str] = Counter()
        self.anchor_map = None
        if hparams.sync == "map":
            llm, plugin_ids_A = self.anchored.llm.state, self.anchored.plugin.state.anchor_ids_A
            self.anchor_map = AnchorMap.of(llm.anchor_ids_A, plugin_ids_A, llm.n_tokens)

    @classmethod
    def attach(
        cls,
        target: LoadedModel,
        plugin: EditedPlugin,
        hparams: OnceEditHparams,
        target_side: PairState | None = None,
        plugin_side: PairState | None = None,
    ) -> "EnsembleModel":
        """Build the ensemble, and whichever sides of the pair are needed and not given."""
        pairs_special = hparams.eos == "pair_special"
        eos_id = None if pairs_special else target.tokenizer.eos_token_id
        if not hparams.fuses_anchors:
            own, other = (Vocabulary.of(each.tokenizer) for each in (target, plugin))
            n_own, n_other = (each.model.get_output_embeddings().weight.shape[0] for each in (target, plugin))
            tokens = (Tokens.of(own, other, n_own, target.device), Tokens.of(other, own, n_other, target.device))
            top = hparams.top_k if hparams.decoder == "unite" else None
            union = UnionChooser(*tokens, top, gate=hparams.alpha_gate, eos_id=eos_id)
            return cls(target, plugin, union, hparams)

        def side(own: LoadedModel | EditedPlugin, other: LoadedModel | EditedPlugin) -> PairState:
            return PairState.of(
                own.model,
                (own.tokenizer, other.tokenizer),
                hparams.anchors,
                hparams.relative,
                hparams.temperature,
                pair_special=pairs_special,
                share=hparams.anchor_share,
            )

        target_side = target_side or side(target, plugin)
        plugin_side = plugin_side or side(plugin, target)
        decoder = make_decoder(
            hparams.decoder,
            target_side.state,
            steps=hparams.search_steps,
            lr=hparams.search_lr,
            init=hparams.init,
            target=hparams.target,
        )
        sides = (Projection(target_side.state), Projection(plugin_side.state))
        anchored = AnchorChooser(*sides, decoder, hparams.keep_own, gate=hparams.alpha_gate, eos_id=eos_id)
        return cls(target, plugin, anchored, hparams, target_side.round_trip)

    @property
    def anchored(self) -> AnchorChooser:
        """The chooser of a model that fuses in anchor space."""
        if not isinstance(self.chooser, AnchorChooser):
            raise ValueError(f"decoder '{self.hparams.decoder}' has no anchors")
        return self.chooser

    @cached_property
    def proposer(self) -> Proposer:
        """Turns the plug-in's tokens into drafts for the target model."""
        return Proposer(self)

    @torch.no_grad()
    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id of the ensemble at each target position.

        At target token j the plug-in reads the text before that token; alpha comes from the prompt. All texts of a query
        form one prefix tree of ids, and the whole batch is one forward pass of the plug-in.
        """
        if not queries:
            return []
        rows = [query.prompt_ids + query.target_ids[:-1] for query in queries]
        steps = [(n, j) for n, query in enumerate(queries) for j in range(len(query.target_ids))]
        logits_SV = logits_at(self.target.model, rows, [(n, len(queries[n].prompt_ids) + j - 1) for n, j in steps])
        plugin = heard(self, queries, steps, self.noted)
        self._counts.update(packed_fed=plugin.n_fed, packed_alone=plugin.n_alone)
        tokens: dict[int, int] = {}
        for places, choice in self.choices(logits_SV, plugin.fused, plugin.reading, plugin.alpha_S[plugin.fused]):
            self.count(choice, [plugin.written[s] for s in places])
            tokens |= zip(places, choice.tokens_B.tolist(), strict=True)
        rest = (tokens[s] for s in range(len(steps)))
        return [[next(rest) for _ in query.target_ids] for query in queries]

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by as many ids as its target has.

        If the models have different tokenizers, answers that are not the target model's own are given in its own tokens
        (see `spelling`).
        """
        if self.have_one_tokenizer or not queries:
            return self.greedy(queries)
        spelling = Spelling(self, queries)
        answers = self._written(spelling.longer, spelling.ends)
        own = [spelling.answer(row, ids) if row in answers.changed else ids for row, ids in enumerate(answers.made)]
        pairs = zip(answers.made, own, strict=True)
        self._counts.update(answers=len(queries), respelled=sum(ids[: len(shown)] != shown for ids, shown in pairs))
        return own

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Generate until each row ends."""
        return self._written(queries, lambda row, ids, _: ends(row, ids[-1])).made

    def greedy(self, queries: Sequence[Query]) -> list[list[int]]:
        """The tokens that the ensemble chooses, as many as each target has, all prompts in one batch."""
        return self._written(queries).made

    @torch.no_grad()
    def _written(self, queries: Sequence[Query], ends: RowEnds | None = None) -> Answers:
        answers = Answers(queries, ends)
        if not queries:
            return answers
        decoder: Speculation | Stepwise
        if self.hparams.decode == "speculative":
            decoder = Speculation(self, queries, answers)
            decoder.run()
            self._counts.update(decoder.counts)
        else:
            decoder = Stepwise(self, queries, answers)
            decoder.run()
        self._counts.update(written=sum(map(len, answers.made)), fed=decoder.n_fed)
        return answers

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """Log-probabilities of the target ids under the distributions whose arg-max the ensemble writes (see `scoring`).

        Raises:
            UserError: if the decoder chooses tokens without such a distribution.
        """
        if reason := self.hparams.unscored:
            raise UserError(f"OnceEdit's {reason}", fix="decoder: column")
        return scores(self, queries, reads_targets=reads_targets)

    def state(self) -> State:
        """The number of edits; the plug-ins themselves are artifacts."""
        return {EDITS: torch.tensor(len(self.plugin.requests))}

    def remarks(self) -> Sequence[str]:
        """Remark on the share of the target model's own tokens that survives the round trip, if it is low."""
        if self.round_trip is None or self.round_trip >= ENOUGH:
            return ()
        relative = self.hparams.relative
        return (f"anchor space (relative: {relative}) gives back {self.round_trip:.0%} of the model's own tokens",)

    def formula_flops(self) -> Mapping[str, int]:
        """See `paper_flops`; none without anchors."""
        if not self.hparams.fuses_anchors:
            return {}
        return paper_flops(self.target.model, self.plugin.model, self.anchored.llm.state.n_anchors)

    @torch.no_grad()
    def scope(self, queries: Sequence[Query]) -> list[float]:
        """Alpha of each prompt; the learned one if the hyper-parameters fix `alpha`."""
        prompts = [query.prompt for query in queries]
        unread = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._alpha_of]
        if unread:
            self.noted(unread, self.plugin.read(unread).alpha_B if self.gate.reads else None)
        return [self._alpha_of[prompt] for prompt in prompts]

    def diagnostics(self) -> Mapping[str, float]:
        """Statistics of alpha, separately for edits and other prompts, and of the decoding steps.

        For the decoding steps, see `StepTally.diagnostics`. `held_back_share`: share of steps inside a character.
        `round_trip`: share of the target model's own tokens that survive anchor space, on fixed prompts.
        `accepted_share`: share of drafted tokens that were accepted. `tokens_per_block`: tokens per row and forward pass of
        the target model. `settled_share`: share of tokens that were left to the step-by-step decoder.
        `respelled_share`: share of generated answers that are given in other tokens than those chosen (see `spelling`).
        `packed_share`: ids fed to the plug-in under teacher forcing, relative to feeding every text separately.
        `fed_per_token`: ids fed to the plug-in per generated token, excluding prompts. `anchors` and the shapes of both
        embedding tables are those of the transfer matrices.
        """
        diagnostics: dict[str, float] = dict(self.chooser.diagnostics)
        for prefix, model in (("", self.target.model), ("plugin_", self.plugin.model)):
            table = EmbeddingTable.of(model)
            diagnostics |= {f"{prefix}vocabulary": float(table.vocabulary), f"{prefix}width": float(table.width)}
        if self.round_trip is not None:
            diagnostics["round_trip"] = self.round_trip
        for group, is_edit in (("edits", True), ("others", False)):
            alphas = [alpha for prompt, alpha in self._alpha_of.items() if (prompt in self._edited_prompts) == is_edit]
            if alphas:
                values = torch.tensor(alphas, dtype=torch.float64)
                diagnostics[f"alpha_{group}_mean"] = float(values.mean())
                for percent in (10, 50, 90):
                    diagnostics[f"alpha_{group}_p{percent}"] = float(values.quantile(percent / 100))
        if self.gate.threshold is not None:
            diagnostics["similarity_threshold"] = self.gate.threshold
        diagnostics |= self.chooser.tally.diagnostics()
        if self.chooser.tally.steps:
            diagnostics["held_back_share"] = self._held_back / self.chooser.tally.steps
        if self._counts["packed_alone"]:
            diagnostics["packed_share"] = self._counts["packed_fed"] / self._counts["packed_alone"]
        if self._counts["written"]:
            diagnostics["fed_per_token"] = self._counts["fed"] / self._counts["written"]
        if self._counts["answers"]:
            diagnostics["respelled_share"] = self._counts["respelled"] / self._counts["answers"]
        if self._counts["blocks"]:
            diagnostics["tokens_per_block"] = (self._counts["written"] - self._counts["settled"]) / self._counts[
                "blocks"
            ]
            diagnostics["settled_share"] = self._counts["settled"] / self._counts["written"]
        if self._counts["drafted"]:
            diagnostics["accepted_share"] = self._counts["accepted"] / self._counts["drafted"]
        return diagnostics

    def alpha(self, reading: Reading | None, of_prompt_S: Tensor, written: Sequence[Written]) -> Tensor:
        """Weight of the plug-in at each of S steps, from its reading there (`per_step_alpha`) or from that of the step's prompt.

        `HELD_BACK` inside a character.
        """
        alpha_S = reading.alpha_B if reading is not None and self.hparams.per_step_alpha else of_prompt_S
        if self.hparams.alpha == "fixed":
            alpha_S = torch.full_like(alpha_S, self.hparams.alpha_fixed)
        is_held_back = [is_inside_character for _, is_inside_character in written]
        is_held_back_S = torch.tensor(is_held_back, dtype=torch.bool, device=alpha_S.device)
        return alpha_S.masked_fill(is_held_back_S, HELD_BACK)

    def choices(
        self, logits_SV: Tensor, fused: Sequence[int], reading: Reading | None, alpha_F: Tensor
    ) -> list[tuple[list[int], Choice]]:
        """Choose the tokens at S positions, without counting them.

        Args:
            logits_SV: the target model's logits.
            fused: the positions at which both models are heard; elsewhere, the target model's own token is kept.
            reading: the plug-in's outputs at these; None if there are none.
            alpha_F: its weight at these.

        Returns:
            Some of the positions and their choice, for each of at most two parts.
        """
        is_fused = set(fused)
        own = [place for place in range(len(logits_SV)) if place not in is_fused]
        parts = [(own, self.chooser.gated(logits_SV[own]))] if own else []
        if fused and reading is not None:
            parts.append((list(fused), self.chooser.decide(logits_SV[fused], reading.probs_BU, alpha_F)))
        return parts

    def routing(self, queries: Sequence[Query], companion: Companion) -> Routing:
        """Find out which rows the plug-in may change, and let it read their prompts, or all if alpha depends on that."""
        prompts = {n: Written(query.prompt, False) for n, query in enumerate(queries)}
        reading = companion.read(prompts) if self.gate.reads else None
        alpha_N = self.noted([text for text, _ in prompts.values()], reading.alpha_B if reading else None)
        weight_N = self.alpha(reading, alpha_N, list(prompts.values()))
        is_silent = (weight_N < (0.0 if self.hparams.per_step_alpha else self.chooser.gate)).tolist()
        heard_prompts = {n: prompt for n, prompt in prompts.items() if not is_silent[n]}
        if reading is None and heard_prompts:
            companion.read(heard_prompts)
        return Routing(alpha_N, weight_N.tolist(), is_silent)

    def count(self, choice: Choice, written: Sequence[Written], is_counted: Sequence[bool] | None = None) -> None:
        """Count steps for the diagnostics: all, or those of some rows."""
        counted = [True] * len(written) if is_counted is None else is_counted
        self._held_back += sum(text.is_inside_character for text, yes in zip(written, counted, strict=True) if yes)
        is_counted_B = None if is_counted is None else torch.tensor(is_counted, device=choice.tokens_B.device)
        self.chooser.tally.count(choice, is_counted_B)

    def noted(self, prompts: Sequence[str], learned_N: Tensor | None) -> Tensor:
        """The alpha of prompts from the learned ones, if the gate needs them; that of prompts not seen before is recorded."""
        alpha_N = self.gate.alpha(prompts, learned_N)
        for prompt, alpha in zip(prompts, alpha_N.tolist(), strict=True):
            self._alpha_of.setdefault(prompt, alpha)
        return alpha_N

    def transcripts(self, queries: Sequence[Query]) -> list[Transcript]:
        """The transcript of each query; tokenises the prompts to find out whether each target starts where its prompt ends."""
        alone = self.target.tokenizer([query.prompt for query in queries])["input_ids"]
        return [
            Transcript(self.vocabulary, query, starts_at_prompt=bool(query.prompt) and tuple(ids) == query.prompt_ids)
            for query, ids in zip(queries, alone, strict=True)
        ]
