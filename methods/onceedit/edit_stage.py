"""The edit stage: edit the plug-in once with all requests, for every target model (OnceEdit eq. 5-7).

Either the plug-in is trained, in full or with low-rank updates, or another method edits its weights and only `[WEIGHT]` is
learned. In a sequence, training continues from the plug-in of the earlier blocks and replays some of their edits.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.api import ArtifactSpec, Context
from harness.models.loaded import LoadedModel
from harness.records import Dataset, EditRequest
from methods.common import prefixes
from methods.common.lora import block_linears, low_rank
from methods.common.similarity import PromptMemory, embeddings_of
from methods.onceedit import borrowed
from methods.onceedit.hparams import EARLIER, PREFIXES, edit_stage_values
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.rows import TrainingRow, edit_rows, negative_prompts, negatives_per_epoch, prompt_row
from methods.onceedit.training import EpochLosses, fine_tune, losses, measured
from methods.onceedit.weight_entry import append_entry, learn_entry, new_entry, take_entry
from methods.onceedit.wordings import hard_pool, reworded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BINS = 10

_SUBJECT_SHARE = 0.5
"""Weight of the subject's tokens when negatives are compared with edits: neighbours share the relation, homonyms the subject."""


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Edit the plug-in of `spec` and write it to `folder`: fp32 model, tokenizer, edits, `calibration.json`.

    The unedited plug-in is not changed. Deterministic for a given seed: a separate generator draws order and negatives.

    Raises:
        UserError: if training diverges.
    """
    loaded = context.load_model(spec.inputs["plugin"])
    data = context.load_data(spec.inputs["data"])
    requests, unrelated = [record.request() for record in data.edits], negative_prompts(data)
    hparams = edit_stage_values(spec.identity)
    _warm_up(loaded, unrelated, hparams)
    edit = _train if hparams["editor"] in borrowed.TRAINED else _borrow
    plugin, history = edit(loaded, data, hparams, spec, context)
    calibration = {
        "weight_id": plugin.weight_id,
        "dtype": spec.inputs["plugin"].dtype,
        "tokenizer": loaded.framing,
        "epochs": len(history),
        "generation_loss": [epoch.generation for epoch in history],
        "weight_loss": [epoch.weight for epoch in history],
        "accuracy": [epoch.accuracy for epoch in history],
        "alpha": {
            "edits": _alpha_summary(plugin, [request.prompt for request in requests]),
            "negatives": _alpha_summary(plugin, unrelated),
        },
    }
    replace(plugin, requests=tuple(requests), calibration=calibration).save(folder)
    _verify_tokenizer(plugin.tokenizer, folder, [request.prompt for request in requests])


def _train(
    loaded: LoadedModel, data: Dataset, hparams: Mapping[str, Any], spec: ArtifactSpec, context: Context
) -> tuple[EditedPlugin, list[EpochLosses]]:
    """Fine-tune a copy, in full or with low-rank updates, together with `[WEIGHT]`; also return the losses per epoch."""
    seed = spec.identity["seed"]
    before = None
    if EARLIER in spec.needs:
        before = EditedPlugin.load(context.artifact(spec.needs[EARLIER]), context.device, "float32")
    with context.clock.phase("edit"):
        plugin, entry, learned = _start(loaded, before)
        wordings, unrelated = _lessons(loaded, data, hparams, seed)
        fronts = _prefixes(hparams["contexts"], spec, context)
        edits, negatives = _rows(loaded.tokenizer, wordings[learned:], unrelated, fronts)
        earlier, _ = _rows(loaded.tokenizer, wordings[:learned], (), fronts)
        if hparams["editor"] == "full":
            plugin.model.requires_grad_(True)
            if hparams["plugin_embeddings"] == "frozen":
                plugin.model.get_input_embeddings().requires_grad_(False)
            weights = [weight for weight in plugin.model.parameters() if weight.requires_grad]
            history = fine_tune(plugin, entry, weights, edits, negatives, hparams, seed, context.progress, earlier)
        else:
            generator = torch.Generator().manual_seed(seed)
            with low_rank(block_linears(plugin), hparams["lora_rank"], generator) as updates:
                history = fine_tune(plugin, entry, updates, edits, negatives, hparams, seed, context.progress, earlier)
        return _finished(plugin, entry), history


def _borrow(
    loaded: LoadedModel, data: Dataset, hparams: Mapping[str, Any], spec: ArtifactSpec, context: Context
) -> tuple[EditedPlugin, list[EpochLosses]]:
    """Let another method edit a copy, then learn `[WEIGHT]` on the resulting hidden states; also return the final losses."""
    editor, requests = borrowed.editor(spec.identity["editor"]), [record.request() for record in data.edits]
    needed = borrowed.needs(editor, spec.inputs["plugin"], spec.inputs["data"], spec.identity["seed"])
    folders = {role: context.artifact(need) for role, need in needed.items()}
    plugin = _copy(loaded)
    borrowed.decided(editor, folders).edit(plugin, requests, folders, borrowed.Lent(context))
    with context.clock.phase("edit"):
        wordings, unrelated = _lessons(loaded, data, hparams, spec.identity["seed"])
        fronts = _prefixes(hparams["contexts"], spec, context)
        edits, negatives = _rows(loaded.tokenizer, wordings, unrelated, fronts)
        entry = new_entry(plugin.model)
        if hparams["lambda_weight"]:
            learn_entry(plugin.model, entry, edits, negatives, hparams)
    return _finished(plugin, entry), [measured(plugin.model, entry, edits, negatives, hparams)]


def _start(loaded: LoadedModel, before: EditedPlugin | None) -> tuple[LoadedModel, nn.Linear, int]:
    """The plug-in to train in fp32, its `[WEIGHT]`, and how many edits it has learned before, as the plug-in `before`."""
    if before is None:
        plugin = _copy(loaded)
        return plugin, new_entry(plugin.model), 0
    entry = take_entry(before.model, before.weight_id)
    return LoadedModel(loaded.ref, before.model, loaded.tokenizer), entry, len(before.requests)


def _copy(loaded: LoadedModel) -> LoadedModel:
    """A frozen deep copy of the plug-in in fp32, because updates of 1e-4 are lost in bf16 weights."""
    return LoadedModel(loaded.ref, copy.deepcopy(loaded.model).float().eval().requires_grad_(False), loaded.tokenizer)


def _lessons(
    loaded: LoadedModel, data: Dataset, hparams: Mapping[str, Any], seed: int
) -> tuple[list[list[EditRequest]], list[str]]:
    """The wordings of each edit, and the unrelated prompts that it is told apart from."""
    generator = torch.Generator().manual_seed(seed)
    wordings = reworded(data.edits, data.train, hparams["paraphrases"], generator)
    unrelated = negative_prompts(data, rephrased=hparams["paraphrases"] > 0)
    if hparams["hard_negatives"]:
        memory = PromptMemory.of(embeddings_of(loaded), [request for request, *_ in wordings], _SUBJECT_SHARE)
        drawn = negatives_per_epoch(sum(map(len, wordings)), len(unrelated), hparams)
        unrelated = hard_pool(unrelated, memory, hparams["hard_negatives"], drawn, generator)
    return wordings, unrelated


def _prefixes(contexts: int, spec: ArtifactSpec, context: Context) -> Iterator[list[str]]:
    """Prefixes for each of a series of prompts: none, and as many context prefixes as requested."""
    texts = prefixes.load(context.artifact(spec.needs[PREFIXES])) if contexts else ()
    generator = torch.Generator().manual_seed(spec.identity["seed"])
    while True:
        drawn = torch.randperm(len(texts), generator=generator)[:contexts].tolist()
        yield ["", *(texts[place] for place in drawn)]


def _rows(
    tokenizer: "PreTrainedTokenizerBase",
    wordings: Sequence[Sequence[EditRequest]],
    unrelated: Sequence[str],
    fronts: Iterator[list[str]],
) -> tuple[list[list[TrainingRow]], list[TrainingRow]]:
    """Training rows of each wording of each edit and of the unrelated prompts, after each of their prefixes."""
    requests = [request for of_edit in wordings for request in of_edit]
    behind = [replace(edit, prompt=front + edit.prompt) for edit in requests for front in next(fronts)]
    edits = [edit_rows(tokenizer, request) for request in behind]
    prompts = [front + prompt for prompt in unrelated for front in next(fronts)]
    return edits, [prompt_row(tokenizer, prompt, is_edit=False) for prompt in prompts]


def _finished(plugin: LoadedModel, entry: nn.Linear) -> EditedPlugin:
    weight_id = append_entry(plugin.model, entry)
    return EditedPlugin(plugin.model.requires_grad_(False), plugin.tokenizer, weight_id, (), {})


def _warm_up(loaded: LoadedModel, unrelated: Sequence[str], hparams: Mapping[str, Any]) -> None:
    """Run one discarded forward and backward pass, so that the timing of the edit excludes kernel loading."""
    if unrelated:
        plugin = _copy(loaded)
        plugin.model.requires_grad_(True)
        row = prompt_row(plugin.tokenizer, unrelated[0], is_edit=False)
        loss, _ = losses(plugin.model, new_entry(plugin.model), [row], hparams)
        loss.backward()  # type: ignore[no-untyped-call]


def _alpha_summary(plugin: EditedPlugin, prompts: Sequence[str]) -> dict[str, Any]:
    """Count, mean and histogram (ten bins over [0, 1]) of alpha."""
    if not prompts:
        return {"n": 0}
    alpha_N = plugin.read(prompts).alpha_B.double().cpu()
    histogram = torch.histc(alpha_N, bins=_BINS, min=0.0, max=1.0).int().tolist()
    return {"n": len(prompts), "mean": float(alpha_N.mean()), "histogram": histogram}


def _verify_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path, prompts: Sequence[str]) -> None:
    """Check that the saved tokenizer splits the prompts like the one used for training.

    Raises:
        ValueError: if it does not.
    """
    from transformers import PreTrainedTokenizerFast

    again = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for prompt in prompts:
        if tokenizer(prompt)["input_ids"] != again(prompt)["input_ids"]:
            raise ValueError(f"the tokenizer in {folder} splits {prompt!r} differently from the one trained with")
