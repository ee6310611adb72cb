"""Methods on a model that is spread over two devices: labels, as there is one CPU, that every operation is checked for."""

import pytest

from harness.models.placement import spread
from tests.helpers.labelled_devices import HOME, OTHER, LabelledDevices
from tests.helpers.method_bench import METHODS, Bench


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_a_model_on_two_devices_is_edited_and_answers_as_on_one(
    method, architecture, small_checkpoints, artifact_store
):
    """The edited block is not where texts enter. Every operation is checked for tensors of different devices."""
    bench = Bench(small_checkpoints, artifact_store, method, architecture)
    expected = bench.answers(bench.edit())
    bench = Bench(small_checkpoints, artifact_store, method, architecture)
    layout = bench.model.layout
    chosen = {name: HOME for name, part in bench.model.model.named_modules() if not list(part.children())}
    away = layout.block.format(1)
    chosen = {name: place for name, place in chosen.items() if not name.startswith(away)}
    chosen |= {layout.block.format(0): HOME, away: OTHER}
    spread(bench.model.model, layout, chosen)
    with LabelledDevices(bench.model.model, chosen):
        assert bench.model.device == HOME
        edited = bench.edit()
        assert bench.answers(edited) == expected
        edited.revert()
    assert bench.model.value_matrix(1)[1].requires_grad is False
