"""WISE as the harness sees it: artifacts, lessons, edits that are found again and unrelated prompts that are left alone."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness import registry
from harness.errors import UserError
from harness.files import write_json
from harness.models.catalogue import ModelRef, reference
from harness.models.edited import WeightEditedModel
from harness.suite.hparams import resolve
from harness.tokens import joint_query
from methods.common import prefixes
from methods.wise import loc_prompts
from methods.wise.editor import Wise
from methods.wise.layout import LessonLayout
from tests.helpers.tiny_edits import FACTS, UNRELATED, Context, queries_of, requests_of, three_layers
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_wise import DATA, LAYER, PREFIXES, PROBES, REF, hparams_with, lessons_of

TARGET = ModelRef("tinyllama-1.1b", "pretrained")
LEARNS = {
    "steps": 60,
    "lr": 0.05,
    "mask_ratio": 0.5,
    "alpha": 0.1,
    "beta": 3.0,
    "gamma": 2.0,
    "save_freq": 2,
    "merge_freq": 2,
    "norm_constraint": None,
}


@pytest.fixture
def artifacts(tmp_path):
    folders = {role: tmp_path / role for role in ("loc_prompts", "prefixes")}
    for folder in folders.values():
        folder.mkdir()
    write_json(folders["prefixes"] / prefixes.FILE, {"prefixes": PREFIXES})
    write_json(folders["loc_prompts"] / loc_prompts.FILE, [dataclasses.asdict(probe) for probe in PROBES])
    return folders


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edits_find_their_memory_and_what_finds_none_is_answered_as_before(architecture, artifacts):
    model = three_layers(architecture)
    model.head.weight.mul_(4)  # so that an answer can be certain
    facts = FACTS[:4]
    queries, unrelated = queries_of(model, facts), queries_of(model, UNRELATED)
    wanted = [list(query.target_ids) for query in queries]
    plain = WeightEditedModel(model)
    before = plain.generate(unrelated)
    assert not any(found == want for found, want in zip(plain.generate(queries), wanted, strict=True))
    edited = Wise(hparams_with(**LEARNS)).edit(model, requests_of(facts), artifacts, Context())
    inside, outside = edited.scope(queries), edited.scope(unrelated)
    right = sum(found == want for found, want in zip(edited.generate(queries), wanted, strict=True))
    print(f"{architecture}: {right} of 4 right, edits in scope {inside}, unrelated {outside}")
    assert right >= 2
    assert sum(inside) >= 3
    assert sum(outside) <= 1
    for found, kept, scope in zip(edited.generate(unrelated), before, outside, strict=True):
        assert scope or found == kept
    assert edited.diagnostics()["memories"] == 2


def test_the_answer_takes_no_part_in_the_routing_unless_it_is_told_to(artifacts):
    """In teacher forcing a prompt with any answer is routed as it is without."""
    model = three_layers("llama")
    edited = Wise(hparams_with(**LEARNS)).edit(model, requests_of(FACTS[:2]), artifacts, Context())
    queries = [
        joint_query(model.tokenizer, FACTS[0][0], target) for target in ("French", "Paris is the capital of France")
    ]
    assert edited.scope(queries[:1]) == edited.scope(queries[1:]) == [1.0]
    assert [ids[0] for ids in edited.teacher_forced(queries)] == [ids[0] for ids in edited.generate(queries)]


def test_the_same_seed_gives_the_same_memories(artifacts):
    model = three_layers("llama")
    ends = [Wise(hparams_with()).edit(model, requests_of(FACTS), artifacts, Context())._memory._sides for _ in range(2)]
    for first, second in zip(*ends, strict=True):
        assert torch.equal(first.change_DK, second.change_DK)
        assert first.threshold == second.threshold


def test_a_lesson_is_the_edit_in_every_context_against_one_unrelated_prompt():
    model = three_layers("llama")
    lessons = lessons_of(model)
    first = lessons[0]
    assert [query.prompt for query in first.edits] == [f"{prefix}{FACTS[0][0]}" for prefix in ("", *PREFIXES)]
    assert {query.target for query in first.edits} == {FACTS[0][1]}
    spared = [(lesson.spared.prompt, lesson.spared.target) for lesson in lessons]
    assert spared == [*UNRELATED, *UNRELATED], "fewer prompts than edits are used again"


def test_no_more_contexts_are_used_than_asked_for(artifacts):
    model, seen = three_layers("llama"), []

    class Watched(Wise):
        def _lessons(self, *arguments):
            made = super()._lessons(*arguments)
            seen.extend(len(lesson.edits) for lesson in made)
            return made

    for contexts in (0, 1, 2):
        used = artifacts if contexts else {"loc_prompts": artifacts["loc_prompts"]}
        Watched(hparams_with(contexts=contexts, steps=1)).edit(model, requests_of(FACTS[:1]), used, Context())
    assert seen == [1, 2, 3]


def test_a_request_that_is_too_long_is_named(artifacts):
    model = three_layers("llama")
    model.model.config.max_position_embeddings = 20
    with pytest.raises(UserError, match="record 5: prompt and target have"):
        Wise(hparams_with(contexts=0)).edit(model, requests_of(FACTS), artifacts, Context())


def test_a_pool_without_probes_is_refused(artifacts):
    write_json(artifacts["loc_prompts"] / loc_prompts.FILE, [])
    with pytest.raises(UserError, match="no train record has one"):
        Wise(hparams_with()).edit(three_layers("llama"), requests_of(FACTS), artifacts, Context())


def test_probes_are_taken_in_turn_from_every_record_each_once_and_never_one_that_is_edited():
    assert [(probe.prompt, probe.answer) for probe in loc_prompts.loc_probes(DATA)] == [
        ("a one", "1"),
        ("c one", "1"),
        ("a two", "2"),
    ]


@pytest.mark.parametrize("reads", ["prompt", "sequence"])
def test_a_prompt_whose_answer_is_unknown_is_spared_by_itself(reads):
    """Its answer is the new target of another edit."""
    model, hparams = three_layers("llama"), hparams_with(reads=reads)
    unknown = [dataclasses.replace(probe, has_answer=False) for probe in PROBES[:2]]
    lessons = Wise(hparams)._lessons(model, requests_of(FACTS[:2]), unknown, PREFIXES)
    known = Wise(hparams)._lessons(model, requests_of(FACTS[:2]), PROBES[:2], PREFIXES)
    layout = LessonLayout.of(model, lessons, hparams)
    lengths = [len(lesson.spared.prompt_ids) for lesson in known]
    assert layout.spared.paused.mask_BT.sum(1).tolist() == layout.spared.read_BT.sum(1).tolist() == lengths


def test_the_prompts_are_an_artifact_of_the_data_alone(tmp_path):
    class Lender:
        def load_data(self, ref):
            assert ref == REF
            return DATA

    spec = Wise(hparams_with()).artifacts(TARGET, REF, 0)["loc_prompts"]
    loc_prompts.build(spec, Lender(), tmp_path)
    assert loc_prompts.load(tmp_path) == loc_prompts.loc_probes(DATA)
    assert json.loads((tmp_path / loc_prompts.FILE).read_text())[0] == {
        "prompt": "a one",
        "answer": "1",
        "has_answer": True,
    }
    other = Wise(hparams_with(steps=9)).artifacts(reference("tiny/gptj", corpus=REF), REF, 5)["loc_prompts"]
    assert (spec.kind, spec.key) == ("setup", other.key)
    changed = dataclasses.replace(REF, sha256="1")
    assert Wise(hparams_with()).artifacts(TARGET, changed, 0)["loc_prompts"].key != spec.key


def test_prefixes_are_sampled_only_if_they_are_used():
    roles = [set(Wise(hparams_with(contexts=count)).artifacts(TARGET, REF, 0)) for count in (0, 1)]
    assert roles == [{"loc_prompts"}, {"loc_prompts", "prefixes"}]


def test_no_train_records_are_refused_when_it_is_planned():
    with pytest.raises(UserError, match="keeps none for training"):
        Wise(hparams_with()).artifacts(TARGET, dataclasses.replace(REF, train=0), 0)


def test_a_failed_edit_leaves_the_model_as_it_was(artifacts):
    model = three_layers("llama")
    hooks = [module._forward_hooks for module in model.model.modules()]
    matrix = model.value_matrix(LAYER)[1]
    before = matrix.clone()

    class Broken(Context):
        @staticmethod
        def progress(_description, _total):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Wise(hparams_with()).edit(model, requests_of(FACTS), artifacts, Broken())
    assert torch.equal(matrix, before)
    assert not any(hooks)


@pytest.mark.parametrize("model", ["llama2-7b", "mistral-7b-v0.1", "gpt-j-6b", "tiny/llama", "tiny/gptj"])
@pytest.mark.parametrize("variant", [None, "merge", "corrected", "faithful-easyedit"])
def test_its_files_name_every_value_and_its_source(model, variant):
    resolved = resolve("wise", model, {}, variant=variant)
    assert "default" not in resolved.sources.values()
    assert resolved.values["merge_freq"] == 2 * resolved.values["save_freq"]


def test_shards_are_not_trained_side_by_side_where_padding_counts():
    assert hparams_with(implementation="faithful-easyedit", parallel=1).parallel == 1
    with pytest.raises(ValidationError, match="parallel 2: faithful-easyedit depends on the padding"):
        hparams_with(implementation="faithful-easyedit", parallel=2)


def test_a_merged_memory_is_not_said_to_be_routed_as_in_easyedit():
    with pytest.raises(ValidationError, match="memory merge: faithful-easyedit has EasyEdit's routing for separate"):
        hparams_with(implementation="faithful-easyedit", parallel=1, memory="merge")


def test_a_merge_takes_whole_shards():
    with pytest.raises(ValidationError, match="not a multiple"):
        hparams_with(save_freq=3, merge_freq=4)


def test_the_registry_knows_it_without_importing_torch():
    code = "import sys; from harness import registry; registry.find_method('wise'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0
