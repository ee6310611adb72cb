"""The figure of causal traces: drawn from the cells that used one, and said so if none did."""

import io
import json

import pytest

from harness.store.store import Store
from harness.tracing.artifact import NAME
from reports.figures.causal_trace import LABELS, causal_trace, traces
from reports.frame import load_suite
from tests.tracing.facts import trace


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="pdf")
    return file.getvalue()


@pytest.fixture
def traced(fake):
    """Two models; two cells of the first share a trace."""
    fake.write_suite(models=("tiny/llama", "tiny/gptj"), data=("counterfact",), methods=("none", "ft-l"))
    for model, decisive, methods in (("llama", 3, ("none", "ft-l")), ("gptj", 1, ("ft-l",))):
        with Store(fake.root).artifact(NAME, model).writing() as folder:
            trace(decisive=decisive).save(folder)
        for name in fake.cells:
            if model in name and name.startswith(methods):
                path = fake.root / "cells" / name / "provenance.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "artifacts": {"layers": model}}))
    return load_suite(fake.root, "main_table", "mini")


def test_each_trace_is_a_column_with_three_maps_and_lines_and_its_layer(traced):
    assert [each.trace.decisive_layer() for each in traces(traced)] == [3, 1]
    figure = causal_trace(traced)
    assert len([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]) == 8
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"layer 3", "layer 1"} <= set(texts)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [f"{name} (mini), CounterFact\n4 facts, total effect 0.58" for name in ("Llama2-7B", "GPT-J-6B")]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(LABELS.values())
    assert drawn(figure).startswith(b"%PDF")


def test_without_a_trace_the_figure_says_so(fake):
    fake.write_suite(models=("tiny/llama",), data=("zsre",))
    figure = causal_trace(load_suite(fake.root, "main_table", "mini"))
    assert [text.get_text() for text in figure.texts] == ["No finished cell of this suite used a causal trace."]
