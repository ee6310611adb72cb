"""The README of an exported model: what it is, how to load it, and where it comes from."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.evaluation.metrics import OTHER_KEYS

if TYPE_CHECKING:
    from harness.live.model import LiveModel

SHOWN = 10
"""Edits that the README lists; all are in edits.jsonl."""

_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR", dtype="{dtype}", attn_implementation="{kernel}")
tokenizer = AutoTokenizer.from_pretrained("DIR")"""

_HARNESS = """\
import harness

edited = harness.load_edited("DIR")
print(edited.answer("{prompt}"))"""


def readme(live: "LiveModel", kind: str, remarks: tuple[str, ...]) -> str:
    """The text, in Markdown."""
    return "\n".join(_lines(live, kind, remarks)) + "\n"


def _lines(live: "LiveModel", kind: str, remarks: tuple[str, ...]) -> Iterator[str]:
    origin = live.origin
    yield from (f"# {origin.title}", "")
    yield f"`{origin.model.name}` after knowledge editing with {origin.method.title} (`{origin.method.name}`, {origin.backend})."
    if kind == "checkpoint":
        kernel = origin.model.spec.layout.attention_kernel
        code = _TRANSFORMERS.format(dtype=origin.model.dtype, kernel=kernel)
        yield from (
            "",
            "The edits are in the weights, so plain transformers can load the model:",
            "",
            "```python",
            code,
            "```",
        )
    else:
        yield from ("", "The edits are not in the model's weights, so it takes editing-harness to load them:")
    prompt = origin.requests[0].prompt.replace('"', '\\"').replace("\n", "\\n") if origin.requests else ""
    yield from ("", "```python", _HARNESS.format(prompt=prompt), "```")
    for remark in remarks:
        yield from ("", f"Note: {remark}.")
    yield from ("", "## Edits", "", "| prompt | before | after |", "|---|---|---|")
    for request in origin.requests[:SHOWN]:
        cells = (request.prompt, request.ground_truth, request.target_new)
        yield f"| {' | '.join(text.replace('|', chr(92) + '|').replace(chr(10), ' ') for text in cells)} |"
    if len(origin.requests) > SHOWN:
        yield from ("", f"and {len(origin.requests) - SHOWN} more in `edits.jsonl`")
    yield from ("", "## Provenance", "", "| | |", "|---|---|")
    yield f"| base model | {origin.model.name}, {origin.model.dtype}, files sha256 `{origin.model.sha256[:16] or 'trained here'}` |"
    if shown := ", ".join(f"{key} = {value}" for key, value in origin.hparams.items()):
        yield f"| hyper-parameters | {shown} |"
    yield f"| seed | {origin.seed} |"
    yield from _run(origin.facts)
    yield from ("", "The licence of the base model applies to this one too.")


def _run(facts: Mapping[str, Any]) -> Iterator[str]:
    """Rows about the cell that was scored, if there was one."""
    if "cell" not in facts:
        return
    made = facts["provenance"]
    yield f"| cell | `{facts['cell']}` |"
    yield f"| command | `{made['command']}` |"
    yield f"| code | commit `{(made.get('commit') or 'unknown')[:12]}`{', with local changes' if made.get('dirty') else ''} |"
    packages = made.get("packages", {})
    yield f"| packages | {', '.join(f'{name} {packages[name]}' for name in ('torch', 'transformers') if name in packages)} |"
    for protocol, axes in facts["metrics"].items():
        if protocol not in OTHER_KEYS:
            scores = ", ".join(f"{axis} {found['score']:.3f}" for axis, found in axes.items())
            yield f"| scores, {protocol} | {scores} |"
