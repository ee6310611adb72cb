"""Time per edit of OnceEdit's edit stage, compared with a plain fine-tuning loop over the same batches.

    python -m benchmarks.edit_stage [--model tiny/tinyllama] [--layers N] [--precision bf16] [--quick] [--out FILE]

The reference is a Trainer-style loop: the steps of `transformers.Trainer` with its default settings, written out because
Trainer itself needs `accelerate`, which this project does not depend on. Rows are right-padded, the model's own loss
computes logits over the whole vocabulary at all positions, labels are -100 where nothing is learned (the whole row of an
unrelated prompt), gradients are clipped to norm 1, and fused AdamW uses a linearly decaying learning rate. The loop does less
than Trainer (no data loader, accumulation, NaN check, logging or checkpoints) and less than the edit stage (no `[WEIGHT]`
loss), so the speed-up is a conservative estimate.

Both run alternately in this process, on models with the same random weights. The final losses only show that both learn.
"""

import argparse
import copy
import dataclasses
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks import command
from harness.data.load import load, resolve
from harness.models.batching import right_padded
from harness.models.catalogue import ModelRef, entry
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.tiny.corpus import verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.run.cost import PhaseClock
from harness.run.progress import Display
from harness.suite.hparams import resolve as resolve_hparams
from methods.onceedit.packing import packed
from methods.onceedit.rows import (
    TrainingRow,
    edit_rows,
    epoch_batches,
    negative_prompts,
    negatives_per_epoch,
    prompt_row,
)
from methods.onceedit.training import fine_tune
from methods.onceedit.weight_entry import new_entry

VOCABULARY = 3000
"""Vocabulary size of the tokenizer trained on the records, chosen so that prompts are as long as with large models."""

IGNORED = -100
"""Label of positions that the loss of a Hugging Face model ignores."""


@dataclass(frozen=True)
class Work:
    """The training task of both loops.

    Attributes:
        plugin: the model in fp32, with a tokenizer.
        edits, negatives: training rows.
        hparams: OnceEdit's hyper-parameters for this model; training does not stop early.
    """

    plugin: LoadedModel
    edits: list[list[TrainingRow]]
    negatives: list[TrainingRow]
    hparams: dict[str, Any]

    def batches(self) -> list[list[TrainingRow]]:
        """All batches of all epochs, drawn as in the edit stage."""
        generator = torch.Generator().manual_seed(0)
        n_negatives = negatives_per_epoch(len(self.edits), len(self.negatives), self.hparams)
        return [
            batch
            for _ in range(self.hparams["epochs"])
            for batch in epoch_batches(self.edits, self.negatives, n_negatives, self.hparams["batch"], generator)
        ]

    def copy(self) -> LoadedModel:
        """A trainable copy of the untrained model."""
        return dataclasses.replace(self.plugin, model=copy.deepcopy(self.plugin.model).requires_grad_(True))


def prepared(options: argparse.Namespace) -> Work:
    """Prepare synthetic records, a tokenizer trained on them, and a model with random weights."""
    data = load(resolve("counterfact", "synthetic", options.edits, train=200))
    tokenizer = train_tokenizer("metaspace", VOCABULARY, verbalise(data), boost=1)
    shape = entry(options.model).spec
    if options.layers:
        shape = dataclasses.replace(shape, n_layers=options.layers)
    model = random_model(shape, "float32", torch.device(options.device), options.seed).eval()
    values = {"epochs": options.epochs, "stop_bce": 0.0, "precision": options.precision}
    return Work(
        LoadedModel(ModelRef(options.model, "random"), model, tokenizer),
        [edit_rows(tokenizer, record.request()) for record in data.edits],
        [prompt_row(tokenizer, prompt, is_edit=False) for prompt in negative_prompts(data)],
        {**resolve_hparams("onceedit", options.model, values).values},
    )


def run_edit_stage(work: Work, clock: PhaseClock) -> float:
    """Train a copy with the edit stage; returns the cross entropy per target token in the last epoch."""
    plugin = work.copy()
    silent = Display(Console(quiet=True)).bar
    with clock.phase("edit"):
        trained = list(plugin.model.parameters())
        history = fine_tune(
            plugin, new_entry(plugin.model), trained, work.edits, work.negatives, work.hparams, 0, silent
        )
    return history[-1].generation


def run_reference(work: Work, clock: PhaseClock) -> float:
    """Train a copy with the Trainer-style loop; returns the cross entropy per target token in the last epoch."""
    plugin, batches = work.copy(), work.batches()
    model: PreTrainedModel = plugin.model.train()
    per_epoch = len(batches) // work.hparams["epochs"]
    last_epoch: list[torch.Tensor] = []
    with clock.phase("edit"):
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=work.hparams["lr"], weight_decay=work.hparams["weight_decay"], fused=True
        )
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=len(batches))
        for step, rows in enumerate(batches):
            inputs = _collated(rows, plugin.device)
            with torch.autocast(plugin.device.type, torch.bfloat16, enabled=work.hparams["precision"] == "bf16"):
                loss = model(**inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            if step >= len(batches) - per_epoch:
                last_epoch.append(loss.detach())
    return float(torch.stack(last_epoch).mean())


def _collated(rows: Sequence[TrainingRow], device: torch.device) -> dict[str, torch.Tensor]:
    """Ids, mask and labels of a right-padded batch."""
    batch = right_padded([row.ids for row in rows], device)
    labels_BT = torch.full(batch.ids_BT.shape, IGNORED)
    for index, row in enumerate(rows):
        labels_BT[index, row.labels.start : row.labels.stop] = torch.tensor(row.ids[row.labels.start :])
    return {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT, "labels": labels_BT.to(device)}


def token_shares(work: Work) -> dict[str, float]:
    """Fraction of computed tokens that are not padding, in the edit stage and in the reference."""
    real = in_rows = in_rectangles = 0
    for rows in work.batches():
        lengths = [len(row.ids) for row in rows]
        real += sum(lengths)
        in_rows += packed([row.ids for row in rows], torch.device("cpu")).ids_BT.numel()
        in_rectangles += max(lengths) * len(lengths)
    return {"edit stage": real / in_rows, "reference": real / in_rectangles}


LOOPS = {"edit stage": run_edit_stage, "reference": run_reference}


def measured(work: Work, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per edit of each loop, one value per repeat, and final losses.

    The loops take turns, in random order within each repeat; a warm-up repeat of one epoch is discarded.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    final: dict[str, float] = {}
    short = dataclasses.replace(work, hparams={**work.hparams, "epochs": 1})
    for repeat in range(repeats + 1):
        for name in order.sample(sorted(LOOPS), len(LOOPS)):
            clock = PhaseClock(work.plugin.device.type)
            final[name] = LOOPS[name](work if repeat else short, clock)
            if repeat:
                seconds[name].append(clock.seconds["edit"] / len(work.edits))
    return seconds, final


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    console = command.start(options)
    work = prepared(options)
    shares = token_shares(work)
    with console.status("measuring"):
        seconds, final = measured(work, options.repeats)
    ratios = command.ratios(seconds["reference"], seconds["edit stage"])
    parameters = sum(parameter.numel() for parameter in work.plugin.model.parameters())
    title = f"{options.model}, {parameters / 1e6:.1f} M parameters, {options.precision}, {options.edits} edits"
    table = command.new_table(title, ["loop"], ["ms per edit", "range", "not padding", "final loss"])
    for name in LOOPS:
        milliseconds = [1e3 * value for value in seconds[name]]
        table.add_row(
            name,
            f"{statistics.median(milliseconds):.2f}",
            command.spread(milliseconds, "{:.2f}".format),
            f"{shares[name]:.0%}",
            f"{final[name]:.3f}",
        )
    console.print(table)
    console.print(
        f"the edit stage is {statistics.median(ratios):.2f} times as fast "
        f"({command.spread(ratios, '{:.2f}'.format)} in {len(ratios)} pairs)"
    )
    command.write_results(
        options,
        {
            "hparams": work.hparams,
            "parameters": parameters,
            "not_padding": shares,
            "seconds_per_edit": seconds,
            "ratio": command.summary(ratios),
            "final_loss": final,
        },
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("edit_stage", __doc__, "8 edits, one repeat of one epoch")
    add = parser.add_argument
    add(
        "--model",
        default="tiny/tinyllama",
        help="catalogue name; its shape gets random weights; default: tiny/tinyllama",
    )
    add("--layers", type=int, default=0, help="fewer blocks than the catalogue says")
    add("--edits", type=int, default=64, help="default: 64")
    add("--epochs", type=int, default=3, help="default: 3")
    add("--repeats", type=int, default=9, help="default: 9")
    add("--precision", default="fp32", choices=["fp32", "bf16"], help="default: fp32")
    options = parser.parse_args(arguments)
    if options.quick:
        options.edits, options.epochs, options.repeats = 8, 1, 1
    return options


if __name__ == "__main__":
    command.run(main)
