"""Where EasyEdit, called as it is, would not do what its method says, and what the worker does about it.

Each has a name. A suite switches one off with `without: [name]` among the hyper-parameters of an entry with
`backend: easyedit`; what is on is in the provenance of the cell, what is off also in its identity.
"""

from collections.abc import Collection, Sequence

from harness.errors import UserError, did_you_mean

WORKAROUNDS = {
    "trainable-again": (
        "every parameter may be trained at the start of each act, as after from_pretrained; EasyEdit leaves requires_grad "
        "off behind it, and MEND after ROME on one model fails"
    ),
    "right-padding": (
        "FT-L: a batch is padded on the right, where ft_main.py:115 looks for the last prompt token; EasyEdit's editor pads "
        "on the left, so that in a batch of unequal lengths a place inside the prompt or the padding is read"
    ),
    "unscored-padding": (
        "FT-L: targets are padded with the unknown token, which is what ft_main.py:117 leaves out of the loss; EasyEdit's "
        "editor pads with the end-of-text token, which is then trained as a target"
    ),
    "fresh-caches": (
        "ROME, MEMIT, WISE: what it keeps of a model for the life of its process (CONTEXT_TEMPLATES_CACHE, inv_mom2_cache, "
        "COV_CACHE; WISE.edit_history, WISE.merge_group_edit_history) is dropped before each act; it is found by the model's "
        "name or not even by that, whatever the weights are by then"
    ),
    "given-prefixes": (
        "ROME, MEMIT, WISE: context prefixes are those of our artifact; EasyEdit samples its own once per process, from "
        "whatever model it is asked to edit first (rome_main.py:161, memit_main.py:308, wise/utils.py:426)"
    ),
    "given-statistics": (
        "ROME, MEMIT: second moments of keys are those of our artifact, in EasyEdit's file format; EasyEdit downloads "
        "Wikipedia and reads it once per layer (layer_stats.py). Cannot be switched off: use `moments: published`"
    ),
    "last-mention": (
        "ROME, MEMIT: the last mention of a subject in its prompt is the one that is edited; EasyEdit replaces all of them by "
        "{} and then refuses more than one (rome_main.py:80, repr_tools.py:50)"
    ),
    "one-by-one": (
        "every request is applied, in a call of its own; EasyEdit's function takes the first of a call and drops the others "
        "(ROME: rome_main.py:35; GRACE: grace_main.py:22; DEFER: defer_main.py:22), or takes all rows of the call but the "
        "last for one edit (WISE: WISE.py:262-266)"
    ),
    "fresh-executor": (
        "MEND: each act begins with an executor and hooks of its own; EasyEdit's goes on with the first model and archive "
        "that it has seen (mend_main.py:78-82)"
    ),
    "leading-space": (
        "MEND: trained on GPT-J, targets are tokenised with the space that they have behind a prompt; EasyEdit does so only "
        "if the tokenizer's class is called GPT (zsre.py:226), and its file for GPT-J says AutoTokenizer"
    ),
    "sequential-edit": (
        "WISE: sequential_edit is set, so that a request goes on from the side memory of those before it; EasyEdit's "
        "hyper-parameters have no such field, and without it each request drops all earlier ones (WISE.py:81)"
    ),
    "given-masks": (
        "WISE: a shard trains the entries that our own implementation would, drawn by torch from the seed; EasyEdit draws them "
        "by numpy (WISE.py:480)"
    ),
    "given-values": (
        "GRACE: the value of a new key starts, on the CPU, where our own implementation would have it start; EasyEdit draws one "
        "at every forward pass, used or not (GRACE.py:203), so that each depends on the number of passes before it"
    ),
    "prompt-key": (
        "GRACE: key_id is the last token of each question's prompt; EasyEdit sets it in generate and edit alone, and a forward "
        "pass reads the place where the question or edit before it had its prompt's end (GRACE.py:198)"
    ),
}
"""What each does and what happens without it."""


def active(own: Sequence[str], without: Collection[str]) -> tuple[str, ...]:
    """The workarounds of a method that are on.

    Args:
        own: all that the method has.
        without: those that were switched off.

    Raises:
        UserError: for a name that the method does not have.
    """
    for name in without:
        if name not in own:
            there = ", ".join(own) or "none"
            raise UserError(f"no workaround '{name}'{did_you_mean(name, set(own))}; this method has: {there}")
    return tuple(name for name in own if name not in without)
