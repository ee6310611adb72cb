"""Shared parts of the ROME and MEMIT adapters: hyper-parameters, prompt templates, context prefixes and statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import ArtifactSpec, Context, EditedModel
from harness.errors import UserError
from harness.identity import digest
from harness.memory import PROMPT_TOKENS, Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.subjects import last_mention
from methods.common import prefixes
from methods.easyedit import statistics
from methods.easyedit.editor import FLOAT32, WeightMethod, WholePasses, common_options
from methods.easyedit.inside import Bench

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

LOSS_STOP = 5e-2
"""Hard-coded in rome/compute_v.py:167 and memit/compute_z.py:184."""

WORKAROUNDS = ("trainable-again", "fresh-caches", "given-prefixes", "given-statistics", "last-mention")
"""Workarounds of both methods."""


class WholeRows(WholePasses):
    """Estimates of time of the value optimisation: one request after the other, with all columns of its rows in every step."""

    @property
    def values_per_edit(self) -> int:
        """Optimised values."""
        return 1

    @property
    def passes_per_edit(self: Any) -> float:
        """Forward and backward for all rows in each step."""
        return float(self.values_per_edit * self.n_rows * self.row_tokens * (1 + 3.0 * self.v_steps) / PROMPT_TOKENS)

    @property
    def steps_per_edit(self: Any) -> float:
        """No step is shared with another edit."""
        return float(self.values_per_edit * self.v_steps)


class EasyEditClosedForm(WeightMethod):
    """The caller's half of both adapters."""

    own_workarounds: ClassVar[tuple[str, ...]] = WORKAROUNDS
    preset: ClassVar[Mapping[str, Any]] = {"target_tokens": "alone"}
    differences: ClassVar[tuple[str, ...]] = (
        "labels before the subject, which no value can affect, count in the loss that stops the optimisation "
        "(rome/compute_v.py:152, memit/compute_z.py:169; methods/common/values.py leaves them out)",
    )

    hparams: Any

    def check(self, target: ModelRef) -> None:
        """Reject options that neither method supports.

        Raises:
            UserError: for targets tokenised with their prompt, a different stopping loss, regularisers, or statistics for
                which EasyEdit would download Wikipedia.
        """
        fields = type(self.hparams).model_fields
        off = {name: fields[name].default for name in self.hparams.regularisers}
        self.require(target_tokens="alone", v_loss_stop=LOSS_STOP, **off)
        if "given-statistics" in self.hparams.without:
            raise UserError(
                f"{self.spec.name}: without given-statistics EasyEdit would download Wikipedia in the middle of an edit",
                fix="moments: published, and moments_path: the folder of statistics that EasyEdit computed",
            )

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """As for all methods that edit weights, with whole rows in the value optimisation, and logits at all positions."""
        need, model = super().memory(target, data, eval_batch), replace(target, dtype=FLOAT32).footprint
        tokens = self.hparams.n_rows * self.hparams.row_tokens
        activations = model.backward(tokens, self.hparams.blocks_above(model.n_layers))
        return replace(need, edit={**need.edit, "activations": activations, "logits": model.logits(tokens, 4)})

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The artifacts of our own implementation, so that both use the same prefixes and statistics."""
        needed: dict[str, ArtifactSpec] = self.hparams.artifacts(target, data, seed)
        if "given-prefixes" in self.hparams.without:
            del needed["prefixes"]
        return needed

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Reject requests that EasyEdit would fail on, then edit.

        Raises:
            UserError: naming the record, for a request that EasyEdit cannot process.
        """
        is_last = "last-mention" not in self.hparams.without
        contexts = prefixes.load(artifacts["prefixes"]) if "prefixes" in artifacts else ()
        for request in requests:
            _require_readable(model, as_template(request, is_last), ("", *contexts))
        return super().edit(model, requests, artifacts, context)

    def value_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """The options shared by `hparams/ROME/llama-7b.yaml` and `hparams/MEMIT/llama-7b.yaml`.

        The loss is computed after the last block (`v_loss_layer`), as in the files of all models.
        """
        return {
            **common_options(model, algorithm),
            "layers": list(self.hparams.layers),
            "fact_token": "subject_last",
            "v_num_grad_steps": self.hparams.v_steps,
            "v_lr": self.hparams.v_lr,
            "v_loss_layer": model.n_layers - 1,
            "v_weight_decay": self.hparams.v_weight_decay,
            "clamp_norm_factor": self.hparams.v_clamp,
            "kl_factor": self.hparams.kl_weight,
            "mom2_adjustment": self.hparams.moments != "identity",
            "mom2_dataset": "wikipedia",
            "mom2_n_samples": 100_000,
            "mom2_dtype": statistics.DTYPE,
            "stats_dir": "statistics",
        }


def as_template(request: EditRequest, is_last: bool = True) -> dict[str, str]:
    """Convert a request to a template with `{}` for its subject, as EasyEdit does (rome_main.py:80, memit_main.py:92).

    Args:
        request: the request; whitespace around prompt, subject and target is stripped.
        is_last: replace only the last mention of the subject by `{}` (see `harness.subjects`); otherwise all occurrences.

    Raises:
        UserError: naming the record, if the prompt does not mention the subject, if prompt or target contain braces, which the
            templates would treat as placeholders, or if the subject occurs twice and all mentions are to be replaced.
    """
    prompt, subject, target = request.prompt.rstrip(), request.subject.strip(), request.target_new.strip()
    fix = "leave it out, or backend: native"
    try:
        start, end = last_mention(prompt, subject)
    except ValueError as error:
        raise UserError(f"record {request.record_id}: {error}", fix="leave it out") from None
    if set("{}") & set(prompt + target):
        raise UserError(f"record {request.record_id}: EasyEdit cannot handle braces, as in {prompt!r}", fix=fix)
    if not is_last and prompt.count(subject) > 1:
        raise UserError(
            f"record {request.record_id}: EasyEdit can fill in a subject only once, but it occurs repeatedly in {prompt!r}",
            fix="the workaround last-mention",
        )
    record = {"case_id": request.record_id, "subject": subject, "target_new": target}
    return {**record, "prompt": f"{prompt[:start]}{{}}{prompt[end:]}", "ground_truth": request.ground_truth}


def given_options(bench: Bench) -> dict[str, Any]:
    """The options of an edit run with the location of its statistics, which are written there unless they exist."""
    if "moments" not in bench.artifacts:
        return dict(bench.options)
    folder = bench.artifacts["moments"]
    home = Path("statistics", digest(str(folder), 16)).absolute()
    return {**bench.options, **statistics.write(folder, bench.loaded, bench.options["layers"], home)}


def given_prefixes(bench: Bench) -> list[list[str]]:
    """The context prefixes of an edit run, by group, as EasyEdit templates."""
    return [[f"{text}{{}}" for text in group] for group in prefixes.load_groups(bench.artifacts["prefixes"])]


def matrices(bench: Bench) -> tuple[str, ...]:
    """Names of the edited weights."""
    return tuple(bench.loaded.value_matrix(layer)[0] for layer in bench.options["layers"])


def _require_readable(model: "LoadedModel", record: Mapping[str, str], contexts: Sequence[str]) -> None:
    """Check that EasyEdit finds the end of the subject inside the text, in every context.

    It counts the ids of the text up to there (repr_tools.py:59). If the subject's last letters merge into one token with
    the text that follows, these can be more ids than the whole text has.
    """
    tokenizer = model.tokenizer
    until, _, behind = record["prompt"].partition("{}")
    for context in contexts:
        text = f"{context}{until}{record['subject']}"
        if len(tokenizer(text)["input_ids"]) > len(tokenizer(text + behind)["input_ids"]):
            raise UserError(
                f"record {record['case_id']}: EasyEdit looks for the end of the subject {record['subject']!r} past the "
                f"end of {text + behind!r}",
                fix="leave it out, or backend: native",
            )
