"""OnceEdit's pair of models at one place at a time: no batch, no padding, no cache, whole matrices, torch's own optimiser."""

from functools import cache

import torch

from methods.onceedit.anchors import pair_anchors
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.slow_similarity import similarity
from tests.helpers.tiny_onceedit import EDITS


def bytes_of_a_started_character(raw):
    """How many of the last bytes begin a character that needs more of them."""
    for n in range(1, min(3, len(raw)) + 1):
        needed = 1 + sum(lead <= raw[-n] <= 0xF4 for lead in (0xC2, 0xE0, 0xF0))
        if needed > n and all(byte & 0xC0 == 0x80 for byte in raw[len(raw) - n + 1 :]):
            return n
    return 0


def transfer_matrix(model, anchor_ids, rule):
    """R as it is written down: cosines with the anchors, scaled as the rule says, softmax over each row."""
    rows_VD = model.get_input_embeddings().weight
    units_VD = rows_VD / rows_VD.norm(dim=-1, keepdim=True)
    cosines_VA = units_VD @ units_VD[list(anchor_ids)].T
    for anchor, token in enumerate(anchor_ids):
        cosines_VA[token, anchor] = 1.0
    if rule == "deepen":
        cosines_VA = 100 * cosines_VA / cosines_VA.norm(dim=-1, keepdim=True)
    return cosines_VA.softmax(dim=-1)


@cache
@torch.no_grad()
def logits_after(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


class Reference:
    """The target model and the plug-in."""

    def __init__(self, target, plugin, hparams):
        self.target, self.plugin, self.hparams = target, plugin, hparams
        self.vocabulary = Vocabulary.of(target.tokenizer)
        pairs_special = hparams.eos == "pair_special"
        self.pair = pair_anchors(
            self.vocabulary, Vocabulary.of(plugin.tokenizer), hparams.anchors, pair_special=pairs_special
        )
        self.llm_VA = transfer_matrix(target.model, self.pair.llm_ids, hparams.relative)
        self.plugin_UA = transfer_matrix(plugin.model, self.pair.plugin_ids, hparams.relative)

    def text(self, query, ids):
        """What can be read of a query's continuation, and how many bytes of a started character are behind it."""
        raw = query.prompt.encode() + self.vocabulary.spell(ids)
        started = bytes_of_a_started_character(raw)
        return raw[: len(raw) - started].decode(errors="replace"), started

    def tokenised(self, text):
        return self.plugin.tokenizer(text)["input_ids"]

    def step(self, query, ids, plugin_ids=None):
        """One token after `ids` of a query's continuation, and the anchor that was decoded or None.

        The plug-in reads `plugin_ids`, by default the tokenised text.
        """
        logits_V, anchor = self.logits(query, ids, plugin_ids)
        return int(logits_V.argmax()), anchor

    @torch.no_grad()
    def logits(self, query, ids, plugin_ids=None, routed=None):
        """Logits that the token after `ids` is the arg-max of, and the anchor or None; for `owner`, the anchor's column.

        Alpha comes from the text `routed`, by default the prompt.
        """
        hparams = self.hparams
        logits_V = logits_after(self.target.model, (*query.prompt_ids, *ids))
        if hparams.eos == "deepen" and int(logits_V.argmax()) == self.target.tokenizer.eos_token_id:
            return logits_V, None
        text, started = self.text(query, ids)
        plugin_ids = plugin_ids or self.tokenised(text)
        routed = query.prompt if routed is None else routed
        alpha_ids = plugin_ids if hparams.per_step_alpha else self.tokenised(routed)
        alpha = logits_after(self.plugin.model, tuple(alpha_ids))[self.plugin.weight_id].sigmoid()
        if hparams.alpha in ("similarity", "both"):
            near = similarity(self.plugin, [(prompt, "") for prompt, _ in EDITS], routed, 0.0)
            similar = torch.tensor(hparams.similarity_slope * (near - hparams.similarity_threshold)).sigmoid()
            alpha = torch.maximum(alpha, similar) if hparams.alpha == "both" else similar
        if hparams.alpha == "fixed":
            alpha = torch.tensor(hparams.alpha_fixed)
        if started or not text or alpha < hparams.alpha_gate:
            return logits_V, None
        logits_U = logits_after(self.plugin.model, tuple(plugin_ids)).clone()
        logits_U[self.plugin.weight_id] = -torch.inf
        llm_A = logits_V.softmax(-1) @ self.llm_VA
        fused_A = alpha * (logits_U.softmax(-1) @ self.plugin_UA) + (1 - alpha) * llm_A
        anchor = int(fused_A.argmax())
        if hparams.keep_own and anchor == llm_A.argmax():
            return logits_V, None
        if hparams.decoder == "owner":
            return self.llm_VA[:, anchor], anchor
        return self.search(logits_V, fused_A), anchor

    def search(self, logits_V, fused_A):
        hparams = self.hparams
        onehot_A = torch.eye(len(fused_A), dtype=torch.float64)[fused_A.argmax()]
        target_A = fused_A if hparams.target == "soft" else onehot_A
        start_V = logits_V if hparams.init == "llm" else torch.zeros_like(logits_V)
        z_V = start_V.clone().detach().requires_grad_(True)
        optimiser = torch.optim.AdamW([z_V], lr=hparams.search_lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10, eta_min=hparams.search_lr / 4)
        for _ in range(hparams.search_steps):
            optimiser.zero_grad()
            with torch.enable_grad():
                log_q_A = (z_V.softmax(-1) @ self.llm_VA).log()
                torch.nn.functional.kl_div(log_q_A, target_A, reduction="none").mean().backward()
            optimiser.step()
            schedule.step()
        return z_V.detach()
