"""Train MEND's hypernetwork with EasyEdit's own trainer, in a worker, and save it in our format.

The result is the hypernetwork of the last validation, not the best one: EasyEdit saves at each validation but never updates
its early stopper (BaseTrainer.py:211-213), so `patience` has no effect.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from methods.easyedit.mend_options import training_options
from methods.mend.hparams import HypernetworkHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.records import EditRecord, Probe

VERSION = 2
"""Incremented whenever the same inputs give a different hypernetwork."""

MAX_TOKENS = 40
"""Texts are truncated to this length, the default `max_length` of EasyEdit's dataset (zsre.py:30)."""


def artifact(
    ours: ArtifactSpec, code: Mapping[str, str], memory: Mapping[str, float], has_leading_space: bool
) -> ArtifactSpec:
    """Describe the archive trained by EasyEdit.

    Args:
        ours: the artifact of our own trainer for the same model, records, hyper-parameters and seed.
        code: identity of the EasyEdit checkout, and the precision it trains in if that is not the model's.
        memory: of the training, with the worker's model.
        has_leading_space: see the workaround leading-space.
    """
    return ArtifactSpec(
        name="easyedit-mend-archive",
        kind="setup",
        identity={**ours.identity, **code, "leading_space": has_leading_space, "version": VERSION},
        builder="methods.easyedit.mend_training:build",
        inputs=ours.inputs,
        needs=ours.needs,
        passes=ours.passes,
        memory=memory,
    )


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Train the hypernetwork of `spec` in a worker and write it to `folder`.

    Raises:
        UserError: if there are too few train records.
        WorkerError: if the training fails, as EasyEdit's does on non-finite gradients.
    """
    import torch

    from methods.easyedit.editor import started

    model = context.load_model(spec.inputs["model"])
    hparams = HypernetworkHparams.model_validate(spec.identity["hparams"])
    train = context.load_data(spec.inputs["data"]).train
    rows = [_row(record, probe) for record in train if (probe := record.known_locality)]
    if len(rows) <= hparams.validation:
        raise UserError(
            f"EasyEdit's mend learns from train records with an answered locality probe, but only {len(rows)} of {len(train)} "
            f"have one and {hparams.validation} are held out for validation",
            fix="datasets: [{train: ...}] with more, or a smaller `validation`",
        )
    generator = torch.Generator().manual_seed(spec.identity["seed"])
    rows = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
    learned, held_out = rows[: -hparams.validation], rows[-hparams.validation :]
    options = training_options(hparams, spec.identity["leading_space"], model)
    worker = started(model)
    with context.clock.phase("setup"):
        arguments = (options, learned, held_out, spec.identity["seed"], folder.absolute())
        worker.call("run", "methods.easyedit.mend_training:train", *arguments)
    worker.stop()


def train(
    loaded: "LoadedModel",
    home: Path,
    options: Mapping[str, Any],
    learned: Sequence[dict[str, str]],
    held_out: Sequence[dict[str, str]],
    seed: int,
    folder: Path,
) -> None:
    """Run `EditTrainer` on our model and records, and write the hypernetwork to `folder`. Runs in the worker."""
    import torch
    from easyeditor.dataset.zsre import ZsreDataset
    from easyeditor.trainer import BaseTrainer
    from easyeditor.trainer.EditTrainer import EditTrainer
    from easyeditor.trainer.training_hparams.mend_training_hparams import MENDTrainingHparams

    from methods.common.transforms import EditedMatrix, save
    from methods.easyedit.inside import seed_all
    from methods.easyedit.mend_archive import from_state

    config = MENDTrainingHparams(**options)
    loaded.tokenizer.pad_token_id, loaded.tokenizer.padding_side = (
        loaded.tokenizer.eos_token_id,
        "left",
    )  # zsre.py:47-60

    def data_set(rows: Sequence[dict[str, str]]) -> ZsreDataset:
        made = ZsreDataset.__new__(ZsreDataset)  # __init__ would load a file, and a tokenizer by name
        made._data, made.config, made.tok, made.max_length = list(rows), config, loaded.tokenizer, MAX_TOKENS
        return made

    BaseTrainer.get_model = lambda _: loaded.model.requires_grad_(True)
    seed_all(seed)
    # one epoch over copies: EasyEdit rounds the number of epochs (BaseTrainer.py:176); rounding down skips the last validation
    copies = -(-config.max_iters // len(learned))
    trainer = EditTrainer(config, data_set(list(learned) * copies), data_set(held_out))
    trainer.run()
    written = torch.load(
        trainer.save_path, map_location="cpu", weights_only=False
    )  # trusted: just written by this process
    shapes = {name: loaded.model.get_parameter(name).shape for name in config.inner_params}
    matrices = tuple(EditedMatrix(name, inputs, outputs) for name, (outputs, inputs) in shapes.items())
    hypernetwork = from_state(written["model"], matrices, config.rank)
    report = {
        "records": len(learned) + len(held_out),
        "best_step": written["step"] // config.accumulate_bs,
        "held_out": written["val_stats"]["loss/total_edit_val"],
        "edit_lr": hypernetwork.edit_lr_M.tolist(),
    }
    save(hypernetwork, report, folder)


def _row(record: "EditRecord", probe: "Probe") -> dict[str, str]:
    """Convert a record to the form of `ZsreDataset`; the rephrase does not enter the loss (EditTrainer.py:53).

    The answer of the locality probe does: the trainer reads it after the question.
    """
    return {
        "case_id": record.id,
        "prompt": record.prompt,
        "target_new": record.target_new,
        "ground_truth": record.ground_truth,
        "rephrase_prompt": record.rephrases[0] if record.rephrases else record.prompt,
        "locality_prompt": probe.prompt,
        "locality_ground_truth": probe.answer,
        "cond": f"{record.ground_truth} >> {record.target_new} || {record.prompt}",
    }
