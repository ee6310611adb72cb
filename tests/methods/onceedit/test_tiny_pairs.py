"""Two pairs of tiny models: two thousand decoded tokens, each proved, each compared with the whole distribution."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from harness.data.load import load, resolve
from harness.models.catalogue import reference
from harness.models.tiny import recipe
from harness.store.store import Store
from harness.suite import hparams
from harness.tokens import Query, joint_query
from methods.onceedit import OnceEdit, OnceEditHparams
from methods.onceedit.certify import TIE
from methods.onceedit.decoders import ColumnDecoder, OwnerDecoder
from tests.helpers.in_process import build, quiet_context

STEPS = 24
MODELS = ("tiny/mistral", "tiny/gptj")


@dataclass
class Comparing:
    """Decodes as `owner` and compares each step with `column` and with P over all anchors in fp64."""

    seen: Counter = field(default_factory=Counter)

    def decode(self, fused, logits_l_BV):
        owner = OwnerDecoder().decode(fused, logits_l_BV)
        column = ColumnDecoder(lr=0.15).decode(fused, logits_l_BV)
        whole_BA = sum(
            side.weights_BV @ side.state.exponents(slice(None), slice(None)).softmax(dim=-1) for side in fused.sides()
        )
        first_B = (whole_BA >= whole_BA.amax(dim=-1, keepdim=True) * (1 - TIE)).int().argmax(dim=-1)
        needed_B = fused.is_needed_B  # the end of text is the model's own choice and is not searched for
        self.seen["tokens"] += int(needed_B.sum())
        self.seen["other anchor"] += int((needed_B & (owner.anchors_B != first_B)).sum())
        self.seen["other token"] += int((needed_B & (owner.tokens_B != column.tokens_B)).sum())
        for level in (0, 1, 2):
            self.seen[f"L{level}"] += int((needed_B & (owner.certificate.level_B == level)).sum())
        return owner


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """For models that are trained in a third of the steps of real ones: they need not know their facts here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "TRAINING", {**recipe.TRAINING, "steps": 160})
        yield Store(tmp_path_factory.mktemp("trained"))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["plain", "deepen", "whitened"])
def test_every_certified_token_is_that_of_the_whole_distribution_and_of_the_search(store, rule, capsys):
    data_ref = resolve("counterfact", "synthetic", 24, train=60, unrelated=20, strip_distractor=True)
    data = load(data_ref)
    values = hparams.resolve("onceedit", "tiny/llama", {"relative": rule}).values
    editor = OnceEdit(OnceEditHparams.model_validate(values))
    total, context = Counter(), quiet_context(store)
    for name in MODELS:
        ref = reference(name, corpus=data_ref)
        needed = editor.artifacts(ref, data_ref, 0)
        build(store, context, needed.values())
        model = context.load_model(ref)
        folders = {role: context.artifact(spec) for role, spec in needed.items()}
        pair = editor.edit(model, [record.request() for record in data.edits], folders, context)
        pair.chooser.decoder = comparing = Comparing()
        prompts = [
            prompt
            for record in data.edits
            for prompt in (record.prompt, *record.rephrases, *(probe.prompt for probe in record.locality))
        ][:60] + [record.prompt for record in data.unrelated]
        queries = [joint_query(model.tokenizer, prompt, "x") for prompt in prompts]
        pair.greedy([Query(query.prompt, query.target, query.prompt_ids, (0,) * STEPS) for query in queries])
        with capsys.disabled():
            print(f"\n{rule}, {name}: {dict(comparing.seen)}")
        total += comparing.seen
    assert total["tokens"] >= 2000
    assert total["other anchor"] == 0
    assert total["other token"] == 0
