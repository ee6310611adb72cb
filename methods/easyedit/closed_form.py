"""What the adapters of ROME and MEMIT share: hyper-parameters, prompts as templates, context prefixes and statistics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import ArtifactSpec, Context, EditedModel
from harness.errors import UserError
from harness.identity import digest
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from methods.common import prefixes
from methods.easyedit import statistics
from methods.easyedit.editor import WeightMethod, common_options
from methods.easyedit.inside import Bench

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

LOSS_STOP = 5e-2
"""rome/compute_v.py:167, memit/compute_z.py:184: it is no option there."""

WORKAROUNDS = ("trainable-again", "fresh-caches", "given-prefixes", "given-statistics", "last-mention")
"""Of both."""


class EasyEditClosedForm(WeightMethod):
    """The caller's half of both."""

    own_workarounds: ClassVar[tuple[str, ...]] = WORKAROUNDS
    preset: ClassVar[Mapping[str, Any]] = {"target_tokens": "alone"}
    differences: ClassVar[tuple[str, ...]] = (
        "labels in front of the subject, which no value can change, count in the loss that stops the optimisation "
        "(rome/compute_v.py:152, memit/compute_z.py:169; methods/common/values.py leaves them out)",
    )

    hparams: Any

    def check(self, target: ModelRef) -> None:
        """Refuse what both lack.

        Raises:
            UserError: for targets that are tokenised with their prompt, another loss to stop at, or statistics that EasyEdit
                would download Wikipedia for.
        """
        if self.hparams.target_tokens != "alone":
            raise self.refused("target_tokens", "alone")
        if self.hparams.v_loss_stop != LOSS_STOP:
            raise self.refused("v_loss_stop", LOSS_STOP)
        if "given-statistics" in self.hparams.without:
            raise UserError(
                f"{self.spec.name}: without given-statistics EasyEdit would download Wikipedia in the middle of an edit",
                fix="moments: published, and moments_path: the folder of statistics that EasyEdit has made",
            )

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Those of our own implementation, so that both read the same prefixes and statistics."""
        needed: dict[str, ArtifactSpec] = self.hparams.artifacts(target, data, seed)
        if "given-prefixes" in self.hparams.without:
            del needed["prefixes"]
        return needed

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Look for what EasyEdit would break off at, then edit.

        Raises:
            UserError: naming the record, for a request that it cannot read.
        """
        is_last = "last-mention" not in self.hparams.without
        contexts = prefixes.load(artifacts["prefixes"]) if "prefixes" in artifacts else ()
        for request in requests:
            _require_readable(model, as_template(request, is_last), ("", *contexts))
        return super().edit(model, requests, artifacts, context)

    def value_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """As `hparams/ROME/llama-7b.yaml` and `hparams/MEMIT/llama-7b.yaml` have them in common.

        The loss is read behind the last block (`v_loss_layer`), as in the files of all models.
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
    """A request with `{}` for its subject, as EasyEdit makes it of the whole prompt (rome_main.py:80, memit_main.py:92).

    Args:
        request: whose space around prompt, subject and target is no part of them.
        is_last: the last mention of the subject becomes `{}`; otherwise all do.

    Raises:
        UserError: naming the record: for no subject in the prompt, for braces, which its templates take for places to be
            filled, and for a subject that is mentioned twice if all mentions are meant.
    """
    prompt, subject, target = request.prompt.rstrip(), request.subject.strip(), request.target_new.strip()
    fix = "leave it out, or backend: native"
    if not subject or subject not in prompt:
        raise UserError(f"record {request.record_id}: the subject {subject!r} is not in its prompt {prompt!r}", fix=fix)
    if set("{}") & set(prompt + target):
        raise UserError(f"record {request.record_id}: EasyEdit cannot read braces, as in {prompt!r}", fix=fix)
    before, _, behind = prompt.rpartition(subject)
    if not is_last and subject in before:
        raise UserError(
            f"record {request.record_id}: EasyEdit can fill in a subject once, not in {prompt!r}",
            fix="the workaround last-mention",
        )
    record = {"case_id": request.record_id, "subject": subject, "target_new": target}
    return {**record, "prompt": f"{before}{{}}{behind}", "ground_truth": request.ground_truth}


def given_options(bench: Bench) -> dict[str, Any]:
    """The options of an act with the place of its statistics, which are written there if they are not."""
    if "moments" not in bench.artifacts:
        return dict(bench.options)
    folder = bench.artifacts["moments"]
    home = Path("statistics", digest(str(folder), 16)).absolute()
    return {**bench.options, **statistics.write(folder, bench.loaded, bench.options["layers"], home)}


def given_prefixes(bench: Bench) -> list[list[str]]:
    """The context prefixes of an act, group by group, as EasyEdit's templates."""
    return [[f"{text}{{}}" for text in group] for group in prefixes.load_groups(bench.artifacts["prefixes"])]


def matrices(bench: Bench) -> tuple[str, ...]:
    """Names of the edited weights."""
    return tuple(bench.loaded.value_matrix(layer)[0] for layer in bench.options["layers"])


def _require_readable(model: "LoadedModel", record: Mapping[str, str], contexts: Sequence[str]) -> None:
    """Check that EasyEdit finds the end of the subject inside the text, in every context.

    It counts the ids of the text up to there (repr_tools.py:59), of which there are more than in the whole text where the
    subject's last letters become one token with what follows.
    """
    tokenizer = model.tokenizer
    until, _, behind = record["prompt"].partition("{}")
    for context in contexts:
        text = f"{context}{until}{record['subject']}"
        if len(tokenizer(text)["input_ids"]) > len(tokenizer(text + behind)["input_ids"]):
            raise UserError(
                f"record {record['case_id']}: EasyEdit looks for the end of the subject {record['subject']!r} behind the "
                f"end of {text + behind!r}",
                fix="leave it out, or backend: native",
            )
