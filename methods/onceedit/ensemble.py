"""The target model and an edited plug-in as one model to evaluate: two tokenizers kept in step by text.

The plug-in sees text, never the target model's ids: what it says at a step is its distribution after tokenising all
text in front of that step afresh. Where that text ends inside a UTF-8 character, it has no say: alpha is 0.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.models.batching import left_padded
from harness.models.loaded import LoadedModel
from harness.records import EditRequest
from harness.tokens import Query
from methods.onceedit.anchors import pair_anchors
from methods.onceedit.choose import TokenChooser
from methods.onceedit.decoders import make_decoder
from methods.onceedit.forward import at_least_fp32, logits_at
from methods.onceedit.hparams import OnceEditHparams
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.relative import RelativeState
from methods.onceedit.vocabulary import Vocabulary, readable


class EnsembleModel:
    """OnceEdit's edited model (an `EditedModel`); the target model's weights are never touched."""

    def __init__(
        self,
        target: LoadedModel,
        plugin: EditedPlugin,
        chooser: TokenChooser,
        requests: Sequence[EditRequest],
        hparams: OnceEditHparams,
    ) -> None:
        self.target, self.plugin, self.chooser, self.hparams = target, plugin, chooser, hparams
        self._vocabulary = Vocabulary.of(target.tokenizer)
        self._edited_prompts = {request.prompt for request in requests}
        self._alpha_of: dict[str, float] = {}
        self._held_back = 0

    @classmethod
    def attach(
        cls, target: LoadedModel, plugin: EditedPlugin, requests: Sequence[EditRequest], hparams: OnceEditHparams
    ) -> "EnsembleModel":
        """Build what the pair needs once: anchors, both relative states, and each anchor's owner."""
        vocabulary = Vocabulary.of(target.tokenizer)
        pairs_special = hparams.eos == "pair_special"
        anchors = pair_anchors(vocabulary, Vocabulary.of(plugin.tokenizer), hparams.anchors, pair_special=pairs_special)
        with torch.no_grad():
            llm = RelativeState.build(_input_rows(target.model), anchors.llm_ids, hparams.relative)
            state = RelativeState.build(_input_rows(plugin.model), anchors.plugin_ids, hparams.relative)
            _ = llm.owner_A  # computed here, so that it counts as attaching and not as the first step
        decoder = make_decoder(
            hparams.decoder,
            llm,
            steps=hparams.search_steps,
            lr=hparams.search_lr,
            init=hparams.init,
            target=hparams.target,
        )
        eos_id = None if pairs_special else vocabulary.roles.get("eos")
        chooser = TokenChooser(llm, state, decoder, hparams.alpha_gate, eos_id)
        return cls(target, plugin, chooser, requests, hparams)

    @torch.no_grad()
    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id of the pair at each target position.

        At target token j the plug-in reads the text in front of that token; alpha comes from the prompt.
        """
        rows = [query.prompt_ids + query.target_ids[:-1] for query in queries]
        steps = [(n, j) for n, query in enumerate(queries) for j in range(len(query.target_ids))]
        places = [(n, len(queries[n].prompt_ids) + j - 1) for n, j in steps]
        logits_SV = logits_at(self.target.model, rows, places)
        starts = [self._starts_at_prompt(query) for query in queries]
        written = [self._written(queries[n], starts[n], queries[n].target_ids[:j]) for n, j in steps]
        chosen = self._choose(logits_SV, [queries[n].prompt for n, _ in steps], written)
        return _regroup(chosen, queries)

    @torch.no_grad()
    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by as many ids as its target has, all prompts in one batch."""
        starts = [self._starts_at_prompt(query) for query in queries]
        made: list[list[int]] = [[] for _ in queries]
        batch = left_padded([query.prompt_ids for query in queries], self.target.device)
        ids_BT, mask_BT, positions_BT = batch.ids_BT, batch.mask_BT, batch.positions_BT
        cache = None
        for step in range(max(len(query.target_ids) for query in queries)):
            output = self.target.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            active = [n for n, query in enumerate(queries) if step < len(query.target_ids)]
            written = [self._written(queries[n], starts[n], made[n]) for n in active]
            logits_AV = at_least_fp32(output.logits[active, -1])
            for n, token in zip(
                active, self._choose(logits_AV, [queries[n].prompt for n in active], written), strict=True
            ):
                made[n].append(token)
            # finished rows go on with their last token; nobody reads what follows it
            ids_BT = torch.tensor([ids[-1:] for ids in made], device=ids_BT.device)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(made), 1)], dim=-1)
            positions_BT = positions_BT[:, -1:] + 1
        return made

    def diagnostics(self) -> Mapping[str, float]:
        """Alpha over the prompts seen, edits and others apart, and what became of the decoding steps.

        `round_trip_share`: of the fused steps, how often the target model's distribution alone, sent through anchor
        space and back, still gives its own token. What is missing is lost to the detour, not to the plug-in.
        """
        figures: dict[str, float] = {"anchors": float(self.chooser.llm.n_anchors)}
        for group, is_edit in (("edits", True), ("others", False)):
            alphas = [alpha for prompt, alpha in self._alpha_of.items() if (prompt in self._edited_prompts) == is_edit]
            if alphas:
                values = torch.tensor(alphas, dtype=torch.float64)
                figures[f"alpha_{group}_mean"] = float(values.mean())
                for percent in (10, 50, 90):
                    figures[f"alpha_{group}_p{percent}"] = float(values.quantile(percent / 100))
        tally = self.chooser.tally
        if tally["steps"]:
            figures["gated_share"] = tally["gated"] / tally["steps"]
            figures["ended_share"] = tally["ended"] / tally["steps"]
            figures["held_back_share"] = self._held_back / tally["steps"]
        if tally["fused"]:
            figures["round_trip_share"] = tally["round_trips"] / tally["fused"]
        return figures

    def revert(self) -> None:
        """Nothing to restore: the target model was only read."""

    def _choose(self, logits_SV: Tensor, prompts: Sequence[str], written: Sequence[tuple[str, bool]]) -> list[int]:
        """Token of each of S steps, from the target's logits, the step's prompt, and the text in front of it."""
        texts = [text for text, _ in written]
        unread = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._alpha_of]
        reading = self.plugin.read([*texts, *unread])
        self._alpha_of.update(zip(unread, reading.alpha_B[len(texts) :].tolist(), strict=True))
        if self.hparams.alpha == "fixed":
            alpha_S = torch.full_like(reading.alpha_B[: len(texts)], self.hparams.alpha_fixed)
        elif self.hparams.per_step_alpha:
            alpha_S = reading.alpha_B[: len(texts)]
        else:
            alpha_S = reading.alpha_B.new_tensor([self._alpha_of[prompt] for prompt in prompts])
        is_held_back_S = torch.tensor([held_back for _, held_back in written], device=alpha_S.device)
        self._held_back += int(is_held_back_S.sum())
        alpha_S = alpha_S.masked_fill(is_held_back_S, 0.0)
        chosen: list[int] = self.chooser.choose(logits_SV, reading.probs_BU[: len(texts)], alpha_S).tolist()
        return chosen

    def _written(self, query: Query, starts_at_prompt: bool, ids: Sequence[int]) -> tuple[str, bool]:
        """The text after `ids` of a query's continuation, and whether it ends inside a character."""
        if starts_at_prompt:
            return readable(query.prompt.encode() + self._vocabulary.spell(ids))
        return readable(self._vocabulary.spell_from_start([*query.prompt_ids, *ids]))

    def _starts_at_prompt(self, query: Query) -> bool:
        """Whether the target's first id starts where the prompt ends; joint tokenisation may merge over that place."""
        return tuple(self.target.tokenizer(query.prompt)["input_ids"]) == query.prompt_ids


def _input_rows(model: torch.nn.Module) -> Tensor:
    rows: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return rows


def _regroup(flat: Sequence[int], queries: Sequence[Query]) -> list[list[int]]:
    rest = iter(flat)
    return [[next(rest) for _ in query.target_ids] for query in queries]
