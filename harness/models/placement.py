"""Models larger than one device: blocks spread over several, through accelerate.

Everything that methods compute is at home, the device of the embeddings: residual streams enter a block on another device
and come back from it. Only weights, and what is computed inside a block, are elsewhere. So methods handle a model that is
spread like any other; what hooks inside blocks see is moved by `at_home`.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.layouts import Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DeviceMap: TypeAlias = Literal["auto", "balanced"] | Mapping[str, str | int]
"""`auto` fills one device after the other, `balanced` all of them evenly; or the device of each module by its path."""

FOR_WEIGHTS = 0.9
"""Share of a GPU's free memory for weights; accelerate reserves space for one more block on the first device."""

_HOME = "_home"


def places(
    config: "PretrainedConfig",
    layout: Layout,
    dtype: torch.dtype,
    device_map: DeviceMap,
    device: torch.device,
    max_memory: Mapping[int, int] | None = None,
) -> dict[str, torch.device]:
    """The device of each module: of every block, the final norm, the head, and of everything else home.

    Args:
        config, layout: of the model.
        dtype: precision of the weights.
        device_map: where modules go.
        device: home, such as `cuda:0`; other devices are of its kind.
        max_memory: bytes by GPU; by default what is free.

    Raises:
        UserError: if the weights do not fit on these devices, or the map does not fit the model.
    """
    if find_spec("accelerate") is None:
        raise UserError(
            "device_map needs accelerate, which is not installed", fix="pip install 'editing-harness[large]'"
        )
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    modules = [name for name, _ in _placed_modules(empty, layout)]
    if not isinstance(device_map, str):
        return _as_written(empty, modules, device_map, device)
    return _inferred(empty, modules, layout, dtype, device_map, device, max_memory)


def spread(model: "PreTrainedModel", layout: Layout, chosen: Mapping[str, torch.device]) -> "PreTrainedModel":
    """Let each module run on its device, with inputs and outputs at home; the results are those of one device.

    Args:
        model: changed in place; its weights may be on their devices already.
        layout: of its architecture.
        chosen: as returned by `places`.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules

    remove_hook_from_submodules(model)
    home = chosen[layout.embeddings]
    for name, module in _placed_modules(model, layout):
        for part in module.modules():
            setattr(part, _HOME, home)
        hook = AlignDevicesHook(
            execution_device=chosen[name], io_same_device=True, place_submodules=True, skip_keys="past_key_values"
        )
        add_hook_to_module(module, hook)
    for path, device in chosen.items():
        if device == home:
            model.get_submodule(path).to(home)
    return model


def home_of(module: nn.Module) -> torch.device:
    """Device of the residual streams of the model that a module belongs to."""
    found = getattr(module, _HOME, None)
    return cast(torch.device, found if found is not None else next(module.parameters()).device)


def at_home(module: nn.Module, values: Tensor) -> Tensor:
    """Move what a hook inside a block has seen to the device of the residual streams; no copy on a single device."""
    return values.to(getattr(module, _HOME, values.device))


def _placed_modules(model: nn.Module, layout: Layout) -> list[tuple[str, nn.Module]]:
    """What may be away from home: the blocks, the final norm and the head."""
    blocks = layout.block.removesuffix(".{}")
    numbers = range(len(cast(nn.ModuleList, model.get_submodule(blocks))))
    names = [*(f"{blocks}.{number}" for number in numbers), layout.final_norm, layout.head]
    return [(name, model.get_submodule(name)) for name in names]


def _inferred(
    empty: "PreTrainedModel",
    modules: list[str],
    layout: Layout,
    dtype: torch.dtype,
    device_map: str,
    device: torch.device,
    max_memory: Mapping[int, int] | None,
) -> dict[str, torch.device]:
    from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map

    if device_map not in ("auto", "balanced"):
        raise UserError(
            f"device_map: '{device_map}' is not a way to spread a model", fix="device_map: auto, or balanced"
        )
    empty.tie_weights()
    limits: dict[Any, Any] = {}
    for gpu, size in (get_max_memory() if max_memory is None else max_memory).items():
        if gpu != "cpu":
            limits[gpu] = size if max_memory else int(FOR_WEIGHTS * size)
    if not limits:
        raise UserError(f"device_map: {device_map} spreads a model over GPUs, but torch sees none", fix="leave it out")
    whole = [type(empty.get_submodule(layout.block.format(0))).__name__]
    if device_map == "balanced":
        balanced = get_balanced_memory(empty, limits, no_split_module_classes=whole, dtype=dtype)
        limits = {gpu: balanced[gpu] for gpu in limits}
    found = infer_auto_device_map(empty, {**limits, "cpu": 0}, no_split_module_classes=whole, dtype=dtype)
    if outside := [name for name, place in found.items() if place in ("cpu", "disk")]:
        size = sum(parameter.numel() for parameter in empty.parameters()) * dtype.itemsize / 1e9
        raise UserError(
            f"{size:.0f} GB of weights do not fit on {len(limits)} GPUs ({outside[0]} first); weights on the CPU or on disk "
            "would be copied for every pass, and edits of the copies lost",
            fix="more GPUs, or dtype: bfloat16",
        )
    return _as_written(empty, modules, {name: f"{device.type}:{place}" for name, place in found.items()}, device)


def _as_written(
    empty: "PreTrainedModel", modules: list[str], device_map: Mapping[str, str | int], device: torch.device
) -> dict[str, torch.device]:
    """Complete a map: each module gets the device of the longest path that leads to it."""
    wanted = {path: _device(path, place, device) for path, place in device_map.items()}
    known = {name for name, _ in empty.named_modules()}
    if unknown := [path for path in wanted if path not in known]:
        raise UserError(f"device_map: the model has no module '{unknown[0]}'", fix=f"device_map: {{{modules[0]}: …}}")
    inside = [path for path in wanted if any(path.startswith(f"{name}.") for name in modules)]
    if inside:
        raise UserError(f"device_map: '{inside[0]}' is a part of a block, which stays whole", fix="name its block")

    def place_of(name: str) -> torch.device:
        found = [path for path in wanted if path == "" or name == path or name.startswith(f"{path}.")]
        if not found:
            raise UserError(f"device_map does not place '{name}'", fix=f"device_map: {{{name}: {device}}}")
        return wanted[max(found, key=len)]

    chosen = {name: place_of(name) for name in modules}
    rest = [name for name, part in empty.named_modules() if _is_leaf(part) and not _is_below(name, modules)]
    chosen |= {
        name: place_of(name) if any(part.numel() for part in empty.get_submodule(name).parameters()) else device
        for name in rest
    }
    home = {name: place for name, place in chosen.items() if name in rest}
    if away := [name for name, place in home.items() if place != device]:
        raise UserError(
            f"device_map: '{away[0]}' is on {home[away[0]]}, but texts enter the model on {device}",
            fix=f"device_map: {{{away[0]}: {device}}}",
        )
    head, table = empty.get_output_embeddings(), empty.get_input_embeddings()
    if head.weight is table.weight and chosen[modules[-1]] != device:
        chosen[modules[-1]] = device  # one matrix, which is where the embeddings are
    return chosen


def _device(path: str, place: str | int, device: torch.device) -> torch.device:
    try:
        found = torch.device(f"{device.type}:{place}" if isinstance(place, int) else place)
    except RuntimeError:
        found = torch.device("meta")  # `disk`, or no device at all
    if found.type != device.type:
        raise UserError(
            f"device_map: '{path}' is on '{place}', but the model runs on {device.type}; weights elsewhere would be copied "
            "for every pass, and edits of the copies lost",
            fix=f"device_map: {{{path}: {device}}}",
        )
    return found


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _is_below(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
