"""Context prefixes: short texts to put before an edit's prompt, sampled once from the unedited model.

Optimising an edit after several prefixes makes it hold in more than one context (ROME §3.1, MEMIT §4.1).
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
"""First words of the prefixes, as in ROME's public code."""

TOP_K = 5
"""k of top-k sampling, as in ROME's public code."""


def artifact(target: ModelRef, groups: Sequence[tuple[int, int]], seed: int) -> ArtifactSpec:
    """The context prefixes of a model.

    Args:
        target: the model to sample from.
        groups: pairs of a length in tokens, including the first word and a BOS, and the number per word of `WORDS`.
        seed: sampling seed.
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
        passes=len(WORDS) * sum(per_word for _, per_word in groups),
        memory={"answers": target.footprint.answering(len(WORDS) * max((each for _, each in groups), default=0))},
    )


def longest(groups: Sequence[tuple[int, int]]) -> int:
    """Maximum number of tokens of a prefix: its length, a full stop and a space."""
    return max((length + 2 for length, _ in groups), default=0)


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Sample the prefixes of `spec` and write them to `folder`."""
    model = context.load_model(spec.inputs["model"])
    with context.clock.phase("setup"):
        groups = [(length, per_word) for length, per_word in spec.identity["groups"]]
        prefixes = sample(model, groups, spec.identity["seed"])
    write_json(folder / FILE, {"seed": spec.identity["seed"], "groups": groups, "prefixes": prefixes})


def load(folder: Path) -> tuple[str, ...]:
    """The prefixes of an artifact, each ready to be put before a prompt: `The capital of. `."""
    return tuple(json.loads((folder / FILE).read_text(encoding="utf-8"))["prefixes"])


def load_groups(folder: Path) -> list[list[str]]:
    """Like `load`, but one list per group."""
    written = json.loads((folder / FILE).read_text(encoding="utf-8"))
    texts = iter(written["prefixes"])
    return [[next(texts) for _ in range(len(WORDS) * per_word)] for _, per_word in written["groups"]]


def sample(model: "LoadedModel", groups: Sequence[tuple[int, int]], seed: int) -> list[str]:
    """Sample the prefixes of each group, ordered by first word within a group.

    Braces are removed, as in ROME's public code, and white space is collapsed, so that a prefix is a single line.

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
    """Extend each row of ids to `length` by top-k sampling; rows are few and short, so no key-value cache is used."""
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
        # sampled on the CPU, so that a seed gives the same result on every device
        drawn_B1 = torch.multinomial(top.values.softmax(-1).cpu(), 1, generator=generator)
        ids_B = top.indices.cpu().gather(1, drawn_B1)[:, 0].tolist()
        rows = [[*row, new] if len(row) < length else row for row, new in zip(rows, ids_B, strict=True)]
    return rows
