"""Discover the layout of a model whose type is not in the table, from its modules, and verify it by running them.

What is found: the list of blocks, in each of them the attention module and the feed-forward matrices, the last norm, the head
and the embeddings. A layout that is found or given is used only if the parts of the model, run one after the other, say the
same as the whole model bit for bit, and if a change of a value matrix's output moves the residual stream by just that change
(`verify`).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.models.layouts import LAYOUTS, Layout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.models.loaded import LoadedModel
    from harness.models.spec import ModelSpec

_PROBE = 6
"""Tokens of the text that a layout is verified with."""
_ADVICE = "state the modules under `layout:` of the model (see docs/models.md)"


def discovered(spec: "ModelSpec") -> Layout:
    """The layout of a model by its modules.

    Raises:
        UserError: if they cannot be told apart.
    """
    from harness.models.random_weights import shell

    return _discovered(shell(spec), spec.architecture, spec.n_layers, spec.hidden)


@lru_cache(maxsize=8)
def _discovered(model: "nn.Module", architecture: str, n_layers: int, hidden: int) -> Layout:
    from torch import nn

    def refuse(what: str) -> UserError:
        return UserError(f"model type '{architecture}' is unknown, and {what}", fix=_ADVICE)

    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise refuse(f"it has no list of {n_layers} blocks")
    blocks, found = max(lists, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    block = found[0]
    attention = next((name for name, child in block.named_children() if _is_attention(name, child)), None)
    if attention is None:
        raise refuse(f"no module of its blocks is an attention module: {', '.join(dict(block.named_children()))}")
    holder = _feed_forward(block, attention, hidden)
    if holder is None:
        raise refuse(f"no module of its blocks holds feed-forward matrices that end in the width {hidden}")
    mlp, matrices = holder
    base = blocks.rpartition(".")[0]
    backbone = model.get_submodule(base) if base else model
    after = _behind(backbone, blocks.rpartition(".")[2])
    norms = [name for name, child in after if _is_norm(child, hidden)]
    if not norms:
        raise refuse("no norm follows its blocks")
    prefix = f"{base}." if base else ""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    names = {id(module): name for name, module in model.named_modules()}
    if id(embeddings) not in names or id(head) not in names:
        raise refuse("it has no embeddings or no head")
    place = f"{blocks}.{{}}"
    inner = f"{place}.{mlp}" if mlp else place
    return Layout(
        block=place,
        attention=f"{place}.{attention}",
        mlp=inner,
        matrices=matrices,
        value_matrix=f"{inner}.{matrices[-1]}",
        final_norm=f"{prefix}{norms[-1]}",
        head=names[id(head)],
        embeddings=names[id(embeddings)],
        attention_kernel="sdpa" if getattr(model, "_supports_sdpa", False) else "eager",
    )


def verify(model: "LoadedModel") -> None:
    """Verify the layout of a model of an unknown type on a short text of random ids.

    Raises:
        UserError: if the parts of the model do not give the logits of the whole, bit for bit, or if the output of a value matrix
            is not added to the residual stream as it is.
    """
    import torch

    from harness.models.batching import right_padded
    from harness.models.submodels import logits_at, streams_of

    if model.spec.architecture in LAYOUTS and model.ref.layout is None:
        return
    try:
        vocab = model.model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(vocab, (2, _PROBE), generator=generator).tolist()
        batch = right_padded(rows, model.device)
        places = [(row, column) for row in range(len(rows)) for column in range(_PROBE)]
        with torch.no_grad():
            whole_BTV = model.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
            for layer in range(model.n_layers):
                parts_NV = logits_at(model, streams_of(model, batch, layer), layer, places)
                if not torch.equal(parts_NV.view(whole_BTV.shape), whole_BTV.to(parts_NV.dtype)):
                    raise ValueError(f"run in two parts at layer {layer}, the model gives other logits than as a whole")
            for layer in {0, model.n_layers - 1} if model.layout.value_norm is None else ():
                _check_value(model, batch.ids_BT, layer)
    except (AttributeError, ValueError, TypeError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the layout of {model.ref.name} (model type '{model.spec.architecture}') is not right: {reason}",
            fix=_ADVICE,
        ) from None


def _check_value(model: "LoadedModel", ids_BT: "torch.Tensor", layer: int) -> None:
    """Compare how a block's output moves with how the output of its value matrix was moved.

    Raises:
        ValueError: if they differ.
    """
    import torch

    from harness.models.submodels import passed_on

    shift_D = torch.randn(model.spec.hidden, generator=torch.Generator().manual_seed(1)).to(model.device)
    block, matrix = model.block(layer), model.module(model.layout.value_matrix, layer)
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda module, given, out: seen.append(passed_on(out)[:, -1].float()))]
    try:
        model.model(input_ids=ids_BT)
        wanted_BD = shift_D.expand(ids_BT.shape[0], -1)
        hooks.append(matrix.register_forward_hook(lambda module, given, out: out + shift_D.to(out.dtype)))
        model.model(input_ids=ids_BT)
    finally:
        for hook in hooks:
            hook.remove()
    error = float((seen[1] - seen[0] - wanted_BD).norm() / wanted_BD.norm())
    if error > 0.02:
        raise ValueError(
            f"the output of {model.path(model.layout.value_matrix, layer)} is not added unchanged to the residual stream"
        )


def _is_attention(name: str, child: "nn.Module") -> bool:
    from harness.models.linear import is_linear

    said = f"{name} {type(child).__name__}".lower()
    return ("attention" in said or "attn" in said) and any(map(is_linear, child.modules()))


def _feed_forward(block: "nn.Module", attention: str, hidden: int) -> tuple[str, tuple[str, ...]] | None:
    """The module of a block that holds its feed-forward matrices, empty for the block itself, and their names, value last."""
    candidates = [(name, child) for name, child in block.named_children() if name != attention]
    for name, holder in (*_with_inner(candidates), ("", block)):
        linear = _linears(holder)
        writers = [leaf for leaf, (inputs, outputs) in linear.items() if outputs == hidden and inputs != hidden]
        writers = writers or [leaf for leaf, (_, outputs) in linear.items() if outputs == hidden]
        if len(linear) > 1 and writers:
            return name, (*(leaf for leaf in linear if leaf != writers[-1]), writers[-1])
    return None


def _with_inner(children: "list[tuple[str, nn.Module]]") -> "Iterator[tuple[str, nn.Module]]":
    """The modules themselves, and what they contain one level below."""
    for name, child in children:
        yield name, child
        yield from ((f"{name}.{inner}", module) for inner, module in child.named_children())


def _linears(holder: "nn.Module") -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear modules directly inside a module, by name."""
    from harness.models.linear import is_linear, weight_of

    shapes = {name: weight_of(child).shape for name, child in holder.named_children() if is_linear(child)}
    return {name: (shape[1], shape[0]) for name, shape in shapes.items()}


def _behind(backbone: "nn.Module", blocks: str) -> "list[tuple[str, nn.Module]]":
    """The children of a backbone that are defined after its blocks; all others if there are none."""
    children = list(backbone.named_children())
    index = [name for name, _ in children].index(blocks)
    return children[index + 1 :] or children[:index]


def _is_norm(child: "nn.Module", hidden: int) -> bool:
    own = list(child.named_parameters(recurse=False))
    return "norm" in type(child).__name__.lower() and bool(own) and all(tuple(p.shape) == (hidden,) for _, p in own)
