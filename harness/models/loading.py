"""Load a model from a reference: tiny models, local folders and hub models from checkpoints, or random weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import InsufficientMemoryError, UserError
from harness.models import checkpoint, sources
from harness.models.catalogue import CATALOGUE, ModelRef, inspected
from harness.models.discovery import verify
from harness.models.loaded import LoadedModel
from harness.tokens import drop_suffix

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load(ref: ModelRef, device: str) -> LoadedModel:
    """Load a model from safetensors, in evaluation mode, frozen, with an explicit attention implementation.

    Args:
        ref: the model; for a tiny model, `source` must name the folder of the trained artifact.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: if the files are unusable, or the device is not available.
        InsufficientMemoryError: if the model does not fit in its memory.
    """
    import torch
    from transformers.utils import logging

    from harness.models.rope import make_rowwise
    from harness.models.unflattened import unflatten

    logging.disable_progress_bar()
    spec, place = ref.spec, torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}': torch sees no GPU here", fix="--device cpu")
    try:
        if ref.weights == "random":
            from harness.models.random_weights import byte_tokenizer, random_model

            folder = Path(ref.source).expanduser()
            tokenizer, suffix = _tokenizer(folder, ref) if ref.source else (byte_tokenizer(spec), ())
            model = random_model(spec, ref.dtype, place)
        else:
            found = inspected(folder_of(ref), CATALOGUE.get(ref.name))
            _verify_unchanged(found, ref)
            config = _config(found.folder)
            tokenizer, suffix = _tokenizer(found.folder, ref)
            model = _model(found.folder, config, ref, place)
    except torch.OutOfMemoryError:
        gigabytes = spec.memory_bytes(ref.dtype) / 1e9
        raise InsufficientMemoryError(
            f"{ref.name} does not fit on {device}: {gigabytes:.0f} GB → a larger device or dtype: bfloat16"
        ) from None
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of {ref.name} has {len(tokenizer)} ids, its model {rows}", fix="another source")
    make_rowwise(model)
    unflatten(model)
    loaded = LoadedModel(ref, model.eval().requires_grad_(False), tokenizer, suffix)
    verify(loaded)
    return loaded


def folder_of(ref: ModelRef) -> Path:
    """The folder of a checkpoint; of a hub model, exactly the commit of the reference, downloaded if necessary.

    Raises:
        UserError: if there is none, or its download fails.
    """
    if ref.weights == "trained":
        if not ref.source:
            raise ValueError(f"{ref.name} is loaded from the artifact of its training, but 'source' is empty")
        return Path(ref.source)
    return sources.obtain(ref.source, ref.revision)


def _verify_unchanged(found: checkpoint.Checkpoint, ref: ModelRef) -> None:
    """Refuse files that are not those that the reference was made from."""
    if ref.sha256 and found.sha256 != ref.sha256:
        raise UserError(
            f"{found.folder} has changed since the cell was planned: its files are those of another model",
            fix="run the same command again, or restore the files",
        )


def _config(folder: Path) -> "PretrainedConfig":
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def _model(folder: Path, config: "PretrainedConfig", ref: ModelRef, device: "torch.device") -> "PreTrainedModel":
    """Load the model of a verified checkpoint: on the CPU and then to its device, or straight onto several devices."""
    import torch
    from transformers import AutoModelForCausalLM

    from harness.models.placement import places, spread

    dtype, layout = getattr(torch, ref.dtype), ref.spec.layout
    given = dict(ref.device_map) if isinstance(ref.device_map, tuple) else ref.device_map
    chosen = places(config, layout, dtype, given, device) if given else None
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation=layout.attention_kernel,
        device_map=chosen,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise UserError(f"{folder} lacks {len(wrong)} tensors of its model, {wrong[0]} first", fix="another source")
    checked: PreTrainedModel = model
    return spread(checked, layout, chosen) if chosen else checked.to(device)


def _tokenizer(folder: Path, ref: ModelRef) -> tuple["PreTrainedTokenizerBase", tuple[str, ...]]:
    """Load the tokenizer of a folder, without what it appends to texts, which is returned as well.

    Raises:
        UserError: if it cannot be read, adds BOS although the model was not trained with it or the other way round, or does
            not put the same tokens around every text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the tokenizer in {folder} cannot be read: {reason}", fix="copy its files again") from error
    is_whole = (folder / "tokenizer.json").is_file()  # if so, transformers ignores add_bos_token and add_eos_token
    setting = f"{{}} in {folder / ('tokenizer.json' if is_whole else 'tokenizer_config.json')}"
    try:
        framing = drop_suffix(tokenizer)
    except ValueError as error:
        raise UserError(
            f"the tokenizer in {folder} {error}",
            fix=f"correct {setting.format('post_processor' if is_whole else 'add_eos_token')}",
        ) from None
    adds_bos = tokenizer.bos_token_id in framing.prefix[:1]
    if adds_bos != ref.spec.adds_bos:
        does, should = ("starts", "not ") if adds_bos else ("does not start", "")
        raise UserError(
            f"the tokenizer in {folder} {does} texts with BOS, but {ref.name} was {should}trained with it",
            fix=f"correct {setting.format('post_processor' if is_whole else 'add_bos_token')}",
        )
    return tokenizer, tuple(tokenizer.convert_ids_to_tokens(list(framing.suffix)))
