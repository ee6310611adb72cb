"""Workarounds for cases in which EasyEdit, called as is, would not do what its method describes.

Each has a name. A suite switches one off with `without: [name]` among the hyper-parameters of an entry with
`backend: easyedit`. Active workarounds are recorded in the cell's provenance; disabled ones are also part of its identity.
"""

from collections.abc import Collection, Sequence

from harness.errors import UserError, did_you_mean

WORKAROUNDS = {
    "trainable-again": (
        "every parameter is trainable at the start of each edit run, as after from_pretrained; EasyEdit leaves requires_grad "
        "off, so that MEND fails after ROME on the same model"
    ),
    "right-padding": (
        "FT-L: batches are padded on the right, as ft_main.py:115 assumes when it looks for the last prompt token; EasyEdit's "
        "editor pads on the left, so that in a batch of unequal lengths a position inside the prompt or the padding is read"
    ),
    "unscored-padding": (
        "FT-L: targets are padded with the unknown token, which ft_main.py:117 excludes from the loss; EasyEdit's editor "
        "pads with the end-of-text token, which is then trained as a target"
    ),
    "fresh-caches": (
        "ROME, MEMIT, AlphaEdit, WISE: process-wide caches (CONTEXT_TEMPLATES_CACHE, inv_mom2_cache, COV_CACHE; AlphaEdit's "
        "cache_c; WISE.edit_history, WISE.merge_group_edit_history) are cleared before each edit run; EasyEdit keys them by the "
        "model's name at most, even if its weights have changed"
    ),
    "given-prefixes": (
        "ROME, MEMIT, AlphaEdit, WISE: context prefixes come from our artifact; EasyEdit samples its own once per process, from "
        "the first model that it edits (rome_main.py:161, memit_main.py:308, wise/utils.py:426)"
    ),
    "given-statistics": (
        "ROME, MEMIT: covariance statistics come from our artifact, in EasyEdit's file format; EasyEdit downloads "
        "Wikipedia and processes it once per layer (layer_stats.py). Cannot be switched off: use `moments: published`"
    ),
    "given-null-space": (
        "AlphaEdit: the projections come from our artifact; EasyEdit computes them from Wikipedia or reads them from one file "
        "for all models, and on Mistral it does neither (AlphaEdit_main.py:60-86). Cannot be switched off"
    ),
    "last-mention": (
        "ROME, MEMIT, AlphaEdit: the last mention of the subject in the prompt is edited; EasyEdit replaces every mention by {} "
        "and then fails if there is more than one (rome_main.py:80, AlphaEdit_main.py:133, repr_tools.py:50)"
    ),
    "one-by-one": (
        "every request is applied in a separate call; EasyEdit's function uses the first request of a call and drops the others "
        "(ROME: rome_main.py:35; GRACE: grace_main.py:22; DEFER: defer_main.py:22), or treats all rows of the call but the "
        "last as one edit (WISE: WISE.py:262-266)"
    ),
    "fresh-executor": (
        "MEND: each edit run starts with a new executor and new hooks; EasyEdit's executor keeps the first model and archive "
        "that it was given (mend_main.py:78-82)"
    ),
    "life-long-statistics": (
        "UltraEdit, MALMEN: the statistics that normalise keys and gradients go on from call to call; EasyEdit's executor forgets "
        "that it is initialised (ultraedit_main.py:59, malmen_main.py:65), so that they start anew with every turn"
    ),
    "every-request": (
        "UltraEdit, MALMEN: a call has as many requests as are left, in micro-batches of equal size; EasyEdit refuses a smaller "
        "last call and drops the requests behind the last full micro-batch (ultraedit_main.py:64-68, malmen_main.py:70-74)"
    ),
    "given-encoder": (
        "IKE: texts are compared by their mean input embeddings; EasyEdit downloads a sentence encoder (ike_main.py:37). Cannot be "
        "switched off"
    ),
    "found-edit": (
        "IKE: a question is read with the edit that our memory finds for it, or none; EasyEdit's evaluation tells the model which "
        "edit each question belongs to, those about locality too (evaluate.py:267-298). Cannot be switched off"
    ),
    "given-updates": (
        "LoRA: the low-rank updates start from the same values as in our own implementation; peft draws its own"
    ),
    "leading-space": (
        "MEND: when training on GPT-J, targets are tokenised with the space that follows the prompt; EasyEdit does so only "
        "if the tokenizer's class name contains GPT (zsre.py:226), and its file for GPT-J names AutoTokenizer"
    ),
    "sequential-edit": (
        "WISE: sequential_edit is set, so that each request continues from the side memory of the previous ones; EasyEdit's "
        "hyper-parameters have no such field, and without it each request discards all earlier ones (WISE.py:81)"
    ),
    "given-masks": (
        "WISE: each shard trains the same entries as in our own implementation, drawn by torch from the seed; EasyEdit draws "
        "them with numpy (WISE.py:480)"
    ),
    "given-values": (
        "GRACE: on the CPU, each new key has the same initial value as in our own implementation; EasyEdit draws a value at "
        "every forward pass, used or not (GRACE.py:203), so that values depend on the number of earlier passes"
    ),
    "prompt-key": (
        "GRACE: key_id is the last prompt token of each query; EasyEdit sets it only in generate and edit, so that a forward "
        "pass reads the position where the prompt of the previous query or edit ended (GRACE.py:198)"
    ),
}
"""What each workaround does, and what happens without it."""


def active(own: Sequence[str], without: Collection[str]) -> tuple[str, ...]:
    """The active workarounds of a method.

    Args:
        own: all workarounds of the method.
        without: those that are switched off.

    Raises:
        UserError: for a name that is not a workaround of the method.
    """
    for name in without:
        if name not in own:
            there = ", ".join(own) or "none"
            raise UserError(f"no workaround '{name}'{did_you_mean(name, set(own))}; this method has: {there}")
    return tuple(name for name in own if name not in without)
