"""Where a model recalls facts: average indirect effects by token and layer, for every causal trace of a suite."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.registry import register_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.tracing.trace import Kind, Role, Trace
    from reports.frame import SuiteFrame

HEIGHT = 5.6
"""Inches."""

TITLES: "dict[Kind, str]" = {"state": "One hidden state", "mlp": "MLP outputs", "attention": "Attention outputs"}
COLORS: "dict[Kind, str]" = {"state": "#5b4ba0", "mlp": "#1b7f5c", "attention": "#b5432a"}
MAPS: "dict[Kind, str]" = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
LABELS: "dict[Role, str]" = {
    "first subject": "first subject token",
    "middle subject": "middle subject tokens",
    "last subject": "last subject token",
    "first after": "first token after",
    "further": "further tokens",
    "last": "last token",
}
STYLES: "dict[Role, Literal['-', ':']]" = {"last subject": "-", "last": ":"}
"""The early site, where the subject is looked up, and the late site, where the answer is read off."""


@dataclass(frozen=True, slots=True)
class Titled:
    """A trace and what it is of."""

    title: str
    trace: "Trace"


@register_figure("causal_trace")
def causal_trace(frame: "SuiteFrame") -> "Figure":
    """Causal tracing: average indirect effect by token and layer (ROME, figure 2), one column per model and dataset."""
    from reports.drawing import COLUMN, drawing, nothing

    found = list(traces(frame))
    if not found:
        return nothing("No finished cell of this suite used a causal trace.")
    with drawing(COLUMN * len(found), HEIGHT) as figure:
        for part, each in zip(figure.subfigures(1, len(found), squeeze=False)[0], found, strict=True):
            facts, total = len(each.trace.facts), each.trace.total_effect()
            part.suptitle(f"{each.title}\n{facts} facts, total effect {float(total.value):.2f}", fontsize=7.5)
            *maps, lines = part.subplots(4, 1, gridspec_kw={"height_ratios": [1, 1, 1, 1.4]})
            for axes, kind in zip(maps, TITLES, strict=True):
                _heat_map(axes, each.trace, kind)
            _lines(lines, each.trace)
            part.legend(handles=_keys(), fontsize=6, frameon=False, ncols=2, loc="outside lower center")
    return figure


def traces(frame: "SuiteFrame") -> "Iterator[Titled]":
    """The traces that finished cells used, each once, in the order of the cells."""
    from harness.store.store import Store
    from harness.tracing.artifact import NAME
    from harness.tracing.trace import Trace

    store, seen = Store(frame.store), set[str]()
    titles = frame.cells.drop_duplicates("cell").set_index("cell")
    for name, cell in titles.iterrows():
        for key in store.cell(str(name)).read("provenance.json")["artifacts"].values():
            folder = store.artifact(NAME, key)
            if folder.is_done and key not in seen:
                seen.add(key)
                yield Titled(f"{cell['model_title']}, {cell['data_title']}", Trace.load(folder.path))


def _heat_map(axes: "Axes", trace: "Trace", kind: "Kind") -> None:
    import numpy as np

    rows = {role: found.value for role in LABELS if (found := trace.indirect_effect(kind, role))}
    effects_RL = np.stack(list(rows.values()))
    image = axes.imshow(effects_RL, aspect="auto", cmap=MAPS[kind], vmin=0, interpolation="nearest")
    axes.set_yticks(range(len(rows)), [LABELS[role] for role in rows])
    axes.tick_params(length=2, width=0.5)
    window = trace.windows[kind]
    axes.set_title(TITLES[kind] + (f", {window} layers at a time" if window > 1 else ""), fontsize=7, pad=3)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.06)
    bar.ax.tick_params(length=2, width=0.5, labelsize=6)
    bar.outline.set_linewidth(0.4)
    if kind == "mlp":
        layer = trace.decisive_layer()
        axes.plot(layer, list(rows).index("last subject"), marker="*", color="#f2b134", markeredgecolor="black",
                  markeredgewidth=0.4, markersize=6, clip_on=False)  # fmt: skip
        axes.annotate(
            *(f"layer {layer}", (layer, list(rows).index("last subject"))),
            xytext=(8, 0), textcoords="offset points", va="center", fontsize=6,
        )  # fmt: skip


def _lines(axes: "Axes", trace: "Trace") -> None:
    layers = range(trace.n_layers)
    for kind, color in COLORS.items():
        for role, style in STYLES.items():
            found = trace.indirect_effect(kind, role)
            assert found is not None, "every prompt has a last subject token and a last token"
            axes.plot(layers, found.value, style, color=color, linewidth=1)
            axes.fill_between(
                layers, found.value - found.half_width, found.value + found.half_width, color=color, alpha=0.15, lw=0
            )
    axes.set_xlim(0, trace.n_layers - 1)
    axes.axhline(0, color="black", linewidth=0.4)
    axes.set_xlabel("layer (centre of the restored layers)", labelpad=2)
    axes.set_ylabel("indirect effect", labelpad=2)
    axes.tick_params(length=2, width=0.5)


def _keys() -> "list[Artist]":
    from matplotlib.lines import Line2D

    kinds = [Line2D([], [], color=color, label=TITLES[kind]) for kind, color in COLORS.items()]
    return [
        *kinds,
        *(Line2D([], [], color="black", linestyle=style, label=LABELS[role]) for role, style in STYLES.items()),
    ]
