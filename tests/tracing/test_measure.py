"""Causal tracing: what is measured equals a slow loop over the whole model, and obeys what must hold of any model."""

import pytest
import torch

from harness.records import EditRecord
from harness.tracing.build import Candidate, traced
from harness.tracing.measure import draw_noise, embedding_std, measure
from tests.helpers.tiny_models import catalogued_families, precise, rounding, tiny_model

FAMILIES = ("llama", "gptj", "gemma2", "gpt_neox", "falcon")
WINDOWS = {"state": 1, "mlp": 2, "attention": 1}
IDS = (1, 9, 33, 40, 12, 61, 5)
FIRST, SUBJECT = 2, 2


@pytest.fixture(scope="module", autouse=True)
def _families():
    with catalogued_families():
        yield


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.set_num_threads(1)
    made = tiny_model(request.param)
    made.model.to(precise(request.param))
    return made


def answer(model):
    """What the model itself says, so that there is something to lose."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1].argmax().item()


def noise(samples=2):
    return draw_noise(0.5, samples, SUBJECT, 32, seed=3)


def allowed(model):
    return rounding(model.model.config.model_type, fp64=1e-9, fp32=2e-6)


def slow_probability(model, noise_KD=None, restored=()):
    """One row through the whole model. `restored`: pairs of a module and a token, whose clean output it gets back."""
    clean, said = {}, answer(model)

    def keep(module, arguments, output):
        clean[module] = (output[0] if isinstance(output, tuple) else output).clone()

    def corrupt(module, arguments, output):
        changed = output.clone()
        changed[0, FIRST : FIRST + SUBJECT] += noise_KD.to(output)
        return changed

    def give_back(token):
        def replace(module, arguments, output):
            changed = (output[0] if isinstance(output, tuple) else output).clone()
            changed[0, token] = clean[module][0, token]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return replace

    def run():
        with torch.no_grad():
            logits_V = model.model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
        return logits_V.double().softmax(-1)[said].item()

    handles = [module.register_forward_hook(keep) for module, _ in restored]
    result = run()
    for handle in handles:
        handle.remove()
    if noise_KD is None:
        return result
    handles = [model.embeddings.register_forward_hook(corrupt)]
    handles += [module.register_forward_hook(give_back(token)) for module, token in restored]
    result = run()
    for handle in handles:
        handle.remove()
    return result


def test_every_effect_equals_that_of_one_slow_run_per_restoration_and_sample(model):
    noise_SKD, layers = noise(), model.n_layers
    found = measure(model, IDS, FIRST, noise_SKD, answer(model), WINDOWS)
    assert found.clean == pytest.approx(slow_probability(model), abs=allowed(model))
    corrupted = [slow_probability(model, noise_KD) for noise_KD in noise_SKD]
    assert found.corrupted == pytest.approx(sum(corrupted) / 2, abs=allowed(model))
    assert abs(found.clean - found.corrupted) > 100 * allowed(model), "the noise changes the answer"
    windows = {
        "state": [[layer] for layer in range(layers)],
        "mlp": [[each for each in (layer - 1, layer) if each >= 0] for layer in range(layers)],
        "attention": [[layer] for layer in range(layers)],
    }
    paths = {"state": "block", "mlp": "value_matrix", "attention": "attention"}
    for kind, path in paths.items():
        assert found.restored[kind].shape == (len(IDS) - FIRST, layers)
        for token in range(FIRST, len(IDS)):
            for layer, window in enumerate(windows[kind]):
                modules = [(model.module(getattr(model.layout, path), each), token) for each in window]
                slow = [slow_probability(model, noise_KD, modules) for noise_KD in noise_SKD]
                fast = found.restored[kind][token - FIRST, layer].item()
                assert fast == pytest.approx(sum(slow) / 2, abs=allowed(model)), (kind, token, layer)


def test_restoring_the_last_token_behind_the_last_block_brings_the_clean_answer_back(model):
    found = measure(model, IDS, FIRST, noise(), answer(model), WINDOWS)
    assert found.restored["state"][-1, -1].item() == pytest.approx(found.clean, abs=allowed(model))
    assert found.restored["state"][0, -1].item() == pytest.approx(found.corrupted, abs=allowed(model))


def test_more_rows_than_a_batch_holds_give_the_same_effects(model, monkeypatch):
    whole = measure(model, IDS, FIRST, noise(), answer(model), WINDOWS)
    monkeypatch.setattr("harness.tracing.measure.ROWS", 3)
    parts = measure(model, IDS, FIRST, noise(), answer(model), WINDOWS)
    for kind in WINDOWS:
        torch.testing.assert_close(parts.restored[kind], whole.restored[kind], rtol=0, atol=allowed(model))


def test_no_noise_has_no_effect_and_no_hook_is_left(model):
    found = measure(model, IDS, FIRST, 0 * noise(), answer(model), WINDOWS)
    for restored in found.restored.values():
        torch.testing.assert_close(restored, torch.full_like(restored, found.clean), rtol=0, atol=allowed(model))
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_noise_follows_from_its_seed_and_has_the_deviation_of_the_subjects_embeddings():
    model = tiny_model("llama")
    std = embedding_std(model, [9, 33, 40])
    assert std == pytest.approx(model.embeddings.weight[[9, 33, 40]].double().std().item())
    drawn = draw_noise(std, 50, 4, 32, seed=1)
    assert torch.equal(drawn, draw_noise(std, 50, 4, 32, seed=1))
    assert not torch.equal(drawn, draw_noise(std, 50, 4, 32, seed=2))
    assert drawn.std().item() == pytest.approx(std, rel=0.05)


class Nested:
    """The configuration of a model whose language model is a part of it."""

    def __init__(self, inner):
        self.inner = inner

    def get_text_config(self, **_):
        return self.inner


def test_a_fact_is_traced_in_a_model_with_a_nested_configuration(monkeypatch):
    model = tiny_model("llama")
    record = EditRecord("r", "The mother tongue of Björk is", "Björk", "Icelandic", ground_truth="French")
    fact = Candidate.of(model, record)
    wanted = traced(model, fact, 0.5, 2, WINDOWS, seed=1)
    monkeypatch.setattr(model.model, "config", Nested(model.model.config))
    found = traced(model, fact, 0.5, 2, WINDOWS, seed=1)
    assert (found.clean, found.corrupted) == (wanted.clean, wanted.corrupted)
