"""Context prefixes: a few words of the model's own to put in front of an edit's prompt, sampled once from the unedited model.

An edit that is made behind several of them holds in more than one context (ROME §3.1, MEMIT §4.1).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import ArtifactSpec, Context
from harness.files import write_json
from harness.models.catalogue import ModelRef

if TYPE_CHECKING:
    from torch import Generator

    from harness.models.loaded import LoadedModel

VERSION = 1
FILE = "prefixes.json"

WORDS = ("The", "Therefore", "Because", "I", "You")
"""What a prefix begins with, as in ROME's public code."""

TOP_K = 5
"""A token is drawn from this many, in proportion to their probabilities, as in ROME's public code."""


def artifact(target: ModelRef, groups: Sequence[tuple[int, int]], seed: int) -> ArtifactSpec:
    """Prefixes of a model.

    Args:
        target: the model that writes them.
        groups: pairs of a length in tokens, the first word and a BOS among them, and the number per word of `WORDS`.
        seed: of the draws.
    """
    return ArtifactSpec(
        name="context-prefixes",
        kind="setup",
        identity={
            "model": target.identity(),
            "groups": [list(group) for group in groups],
            "words": WORDS,
            "top_k": TOP_K,
            "seed": seed,
            "version": VERSION,
        },
        builder="methods.common.prefixes:build",
        inputs={"model": target},
        needs=target.artifacts(),
    )


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Sample the prefixes of `spec` and write them to `folder`."""
    model = context.load_model(spec.inputs["model"])
    with context.clock.phase("setup"):
        groups = [(length, per_word) for length, per_word in spec.identity["groups"]]
        prefixes = sample(model, groups, spec.identity["seed"])
    write_json(folder / FILE, {"seed": spec.identity["seed"], "groups": groups, "prefixes": prefixes})


def load(folder: Path) -> tuple[str, ...]:
    """The prefixes of an artifact, each ready to stand in front of a prompt: `The capital of. `."""
    return tuple(json.loads((folder / FILE).read_text(encoding="utf-8"))["prefixes"])


def load_groups(folder: Path) -> list[list[str]]:
    """As `load`, those of each group by themselves."""
    written = json.loads((folder / FILE).read_text(encoding="utf-8"))
    texts = iter(written["prefixes"])
    return [[next(texts) for _ in range(len(WORDS) * per_word)] for _, per_word in written["groups"]]


def sample(model: "LoadedModel", groups: Sequence[tuple[int, int]], seed: int) -> list[str]:
    """Draw the prefixes of each group, word by word within a group.

    Braces are left out, as upstream does, and white space becomes one space: a prefix is one line.

    Returns:
        Texts that end in a full stop and a space.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    texts = []
    for length, per_word in groups:
        begun = [list(model.tokenizer(word)["input_ids"]) for word in WORDS for _ in range(per_word)]
        made = grow(model, begun, length, generator)
        texts += [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in made]
    clean = (" ".join(text.replace("{", " ").replace("}", " ").split()) for text in texts)
    return [f"{text}. " for text in clean]


def grow(model: "LoadedModel", rows: list[list[int]], length: int, generator: "Generator") -> list[list[int]]:
    """Each row of ids, to a length of `length`, by top-k sampling. A few short rows: no key-value cache."""
    import torch

    from harness.models.batching import left_padded

    while any(len(row) < length for row in rows):
        batch = left_padded(rows, model.device)
        with torch.no_grad():
            logits_BV = model.model(
                input_ids=batch.ids_BT,
                attention_mask=batch.mask_BT,
                position_ids=batch.positions_BT,
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        top = logits_BV.float().topk(TOP_K, dim=-1)
        # drawn on the CPU, so that a seed means the same on every device
        drawn_B1 = torch.multinomial(top.values.softmax(-1).cpu(), 1, generator=generator)
        ids_B = top.indices.cpu().gather(1, drawn_B1)[:, 0].tolist()
        rows = [[*row, new] if len(row) < length else row for row, new in zip(rows, ids_B, strict=True)]
    return rows
