"""Methods on a model that is spread over two devices: labels, as there is one CPU, that every operation is checked for."""

import pytest
import torch
from safetensors.torch import load_file

from harness.models.placement import spread
from tests.helpers.labelled_devices import HOME, HOST, OTHER, LabelledDevices
from tests.helpers.method_bench import METHODS, Bench


@pytest.fixture(autouse=True)
def loading(monkeypatch):
    """Files are loaded onto devices with labels too."""
    for module in ("safetensors.torch", "methods.common.transforms", "methods.onceedit.pair"):
        monkeypatch.setattr(f"{module}.load_file", onto_label)


def onto_label(file, device="cpu"):
    return {name: tensor.to(device) for name, tensor in load_file(file).items()}


def put_on_two(model):
    """Spread a model whose second block is not where texts enter; return the device of each module."""
    layout = model.layout
    leaves = [name for name, part in model.model.named_modules() if not list(part.children())]
    away = layout.block.format(1)
    chosen = {name: HOME for name in (*leaves, layout.block.format(0)) if not name.startswith(away)} | {away: OTHER}
    spread(model.model, layout, dict.fromkeys(chosen, HOST))
    for name, module in model.model.named_modules():
        if hasattr(module, "_hf_hook"):
            module._hf_hook.execution_device = chosen[name]
            for part in module.modules():
                part._home = HOME
    return chosen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_a_model_on_two_devices_is_edited_and_answers_as_on_one(
    method, architecture, small_checkpoints, artifact_store
):
    """The edited block is not where texts enter. Every operation is checked for tensors of different devices."""
    bench = Bench(small_checkpoints, artifact_store, method, architecture)
    expected = bench.answers(bench.edit())
    bench = Bench(small_checkpoints, artifact_store, method, architecture)
    chosen = put_on_two(bench.model)
    bench.context.device = str(HOME)
    with LabelledDevices(bench.model.model, chosen):
        assert bench.model.device == HOME
        edited = bench.edit()
        assert bench.answers(edited) == expected
        edited.revert()


def test_the_labels_find_an_operation_on_two_devices():
    with LabelledDevices(torch.nn.Linear(2, 2), {"": HOME}):
        here, there = torch.ones(2, device=HOME), torch.ones(2, device=OTHER)
        with pytest.raises(RuntimeError, match="tensors are on cpu:1 and cpu:2"):
            here + there
        assert (here + there.to(HOME)).device == HOME
