"""Description of a model from the headers of its files, for `harness models show`."""

from collections.abc import Iterator

from harness.models import catalogue, sources
from harness.models.architecture import DTYPE_BYTES
from harness.models.layouts import LAYOUTS, Layout


def described(source: str, revision: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a model's properties that are known without loading it.

    Args:
        source: catalogue name, hub id, folder, `.gguf` file or `package:<distribution>`.
        revision: of a hub model.

    Raises:
        UserError: if nothing is known, or its files are damaged.
    """
    made = catalogue.named(source)
    place = made.hub_id if made else source
    spec = sources.spec_of(place, revision, made.spec if made else None) if place else catalogue.entry(source).spec
    folder = sources.local(place) if place else None
    yield "model", f"{made.name} ({made.title}), {place or 'trained on the spot'}" if made else source
    yield "files", str(folder) if folder else "not on this machine, or not converted yet" if place else "an artifact"
    yield "type", spec.architecture
    yield (
        "shape",
        (
            f"{spec.n_layers} layers, width {spec.hidden}, feed-forward {spec.ffn}, heads {spec.n_heads} "
            f"({spec.n_kv_heads} for keys) of {spec.head_size}, vocabulary {spec.vocab:,}"
        ),
    )
    yield "context", f"{spec.max_positions:,} tokens"
    yield "parameters", f"{spec.parameters / 1e6:,.1f} M" + (", head and embeddings are tied" if spec.tied else "")
    yield "texts", f"begin {'with' if spec.adds_bos else 'without'} a beginning-of-sequence token"
    layout = spec.layout
    known = spec.architecture in LAYOUTS
    yield "layout", "of its type" if known else "discovered; it is verified when the model is loaded"
    yield from (("", f"{name} {path}") for name, path in _paths(layout))
    sizes = ", ".join(f"{dtype} {spec.memory_bytes(dtype) / 1e9:.2f} GB" for dtype in DTYPE_BYTES)
    yield "weights", f"{sizes}; loaded in {spec.dtype} unless a suite says otherwise"


def _paths(layout: Layout) -> list[tuple[str, str]]:
    named = {
        "block": layout.block,
        "attention": layout.attention,
        "mlp": f"{layout.mlp} ({', '.join(layout.matrices)})",
        "final_norm": layout.final_norm,
        "head": layout.head,
        "embeddings": layout.embeddings,
        "value_norm": layout.value_norm,
        "positions": layout.positions,
    }
    return [(name, path) for name, path in named.items() if path]
