"""Second moments: equal to a loop over tokens, what they are made from, and that there is never a silent stand-in."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef, Dataset, EditRecord, Probe
from methods.common import moments, moments_build
from methods.common.moments import MomentHparams
from tests.helpers.tiny_models import ARCHITECTURES, SENTENCES, tiny_model
from tests.helpers.tiny_rome import TinyContext, random_moment

TARGET = ModelRef("llama2-7b", "pretrained", sha256="weights")
DATA = DataRef("counterfact", "", 1, train=2, sha256="records")
TRAIN = (
    EditRecord(
        "a",
        "Björk was born in",
        "Björk",
        "Paris",
        "Reykjavík",
        rephrases=("Björk is from",),
        locality=(Probe("Paris is in", "France"), Probe("What is the mother tongue of Danielle Darrieux?", "French")),
    ),
    EditRecord("b", "Yamoussoukro is the capital of", "Yamoussoukro", "France", "Côte d'Ivoire"),
)


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    torch.set_num_threads(1)
    return tiny_model(request.param)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(SENTENCES * 8))
    return path


def hparams(**changes):
    values = {"moments": "corpus", "moments_path": None, "moments_tokens": 200, "moments_ridge": 1e-6}
    return MomentHparams(**values | changes)


def spec_of(path, layers=(0, 1), seed=0, **changes):
    return moments.artifact(TARGET, DATA, layers, hparams(moments_path=str(path), **changes), seed)


def built(model, spec, folder, data=None):
    folder.mkdir()
    moments_build.build(spec, TinyContext(model, data), folder)
    lowers = {layer: moments.load(folder, layer).lower_KK for layer in spec.identity["layers"]}
    return {layer: lower_KK @ lower_KK.T for layer, lower_KK in lowers.items()}


def slow_sums(model, rows, layers):
    """One unpadded document and one token at a time, outer products in float64."""
    sums = {}
    for layer in layers:
        seen = []
        handle = model.module(model.layout.value_matrix, layer).register_forward_hook(
            lambda module, arguments, output, seen=seen: seen.append(arguments[0][0].double())
        )
        for ids in rows:
            with torch.no_grad():
                model.model(input_ids=torch.tensor([ids]))
        handle.remove()
        sums[layer] = sum(torch.outer(key_K, key_K) for keys_TK in seen for key_K in keys_TK)
    return sums


def test_one_pass_over_padded_batches_is_a_loop_over_tokens(model, monkeypatch):
    monkeypatch.setattr(moments_build, "BATCH_TOKENS", 64)
    rows = [model.tokenizer(text)["input_ids"] for text in SENTENCES]
    assert len({len(row) for row in rows}) > 2
    fast, slow = moments_build.key_moments(model, rows, [0, 1]), slow_sums(model, rows, [0, 1])
    for layer in (0, 1):
        assert fast[layer].dtype == torch.float64
        error = ((fast[layer] - slow[layer]).norm() / slow[layer].norm()).item()
        print(f"{model.spec.architecture} layer {layer}: pass - loop {error:.1e}")
        assert error < 1e-6, "keys are float32"
    assert not any(module._forward_pre_hooks for module in model.model.modules())


def test_the_artifact_holds_the_mean_over_exactly_as_many_tokens_as_asked_for(model, corpus, tmp_path):
    spec = spec_of(corpus)
    found = built(model, spec, tmp_path / "a")
    assert moments.tokens(tmp_path / "a") == 200
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    ids = [model.tokenizer((list(SENTENCES) * 8)[index])["input_ids"] for index in order]
    rows = []
    for row in ids:
        rows.append(row[: 200 - sum(map(len, rows))])
    slow = slow_sums(model, [row for row in rows if row], [0, 1])
    for layer in (0, 1):
        torch.testing.assert_close(found[layer], slow[layer] / 200, rtol=1e-4, atol=1e-5)


def test_a_seed_decides_which_documents_are_read(model, corpus, tmp_path):
    first, again, other = (
        built(model, spec_of(corpus, seed=seed), tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_train_prompts_are_read_with_their_answers(model, tmp_path):
    data = Dataset(DATA, (dataclasses.replace(TRAIN[0], prompt="never read"),), TRAIN, ())
    spec = moments.artifact(TARGET, DATA, [1], hparams(moments="train_prompts"), 0)
    found = built(model, spec, tmp_path / "a", data)
    texts = ["Björk was born in Reykjavík", "Björk is from Reykjavík", "Paris is in France"]
    texts += ["What is the mother tongue of Danielle Darrieux? French", "Yamoussoukro is the capital of Côte d'Ivoire"]
    assert moments_build.train_texts(data) == texts
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    count = sum(map(len, rows))
    torch.testing.assert_close(found[1], slow_sums(model, rows, [1])[1] / count, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "a" / moments.FILE).read_text())["source"] == {"train_prompts": DATA.identity()}


def test_a_probe_without_an_answer_is_read_as_a_prompt():
    record = dataclasses.replace(TRAIN[0], rephrases=(), locality=(Probe("Sjón sings", "Paris", has_answer=False),))
    assert moments_build.train_texts(Dataset(DATA, (), (record,), ()))[1:] == ["Sjón sings"]


def test_the_ridge_is_in_what_is_kept(model, corpus, tmp_path):
    without, with_ridge = (
        built(model, spec_of(corpus, moments_ridge=ridge), tmp_path / str(ridge))[1] for ridge in (1e-6, 0.1)
    )
    expected = without + 0.1 * without.diagonal().mean() * torch.eye(len(without)).double()
    torch.testing.assert_close(with_ridge, expected, rtol=1e-5, atol=1e-6)


def test_factors_are_read_once_for_all_calls(model, corpus, tmp_path):
    built(model, spec_of(corpus), tmp_path / "a")
    factors = moments.FactorCache()
    first = factors.of(tmp_path / "a", [0, 1], torch.device("cpu"))
    assert factors.of(tmp_path / "a", [0, 1], torch.device("cpu"))[1] is first[1]
    assert torch.equal(first[1].lower_KK, moments.load(tmp_path / "a", 1).lower_KK)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_documents_of_every_kind_of_file_are_the_same(tmp_path, suffix):
    path, frame = tmp_path / f"corpus{suffix}", pd.DataFrame({"id": range(5), "text": SENTENCES})
    if suffix == ".txt":
        path.write_text("\n".join([SENTENCES[0], "", *SENTENCES[1:], "  "]))
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(path)
    assert moments_build.documents(path) == list(SENTENCES)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_without_texts_is_one_line(tmp_path, suffix):
    path, frame = tmp_path / f"corpus{suffix}", pd.DataFrame({"body": SENTENCES})
    frame.to_json(path, orient="records", lines=True) if suffix == ".jsonl" else frame.to_parquet(path)
    with pytest.raises(UserError, match=r"no texts under 'text'"):
        moments_build.documents(path)


def test_fewer_tokens_than_a_key_has_entries_are_refused(model, tmp_path):
    (tmp_path / "short.txt").write_text("Paris")
    with pytest.raises(UserError, match=r"keys with 48 entries needs at least as many tokens, but the texts have \d "):
        built(model, spec_of(tmp_path / "short.txt"), tmp_path / "a")


def test_without_a_corpus_the_plan_says_how_to_name_one(monkeypatch):
    monkeypatch.delenv(moments.CORPUS, raising=False)
    with pytest.raises(UserError, match=r"no text .* is given → HARNESS_CORPUS=FILE .*moments: train_prompts"):
        moments.artifact(TARGET, DATA, [4], hparams(), 0)


def test_the_environment_names_a_corpus_where_the_method_does_not(monkeypatch, corpus):
    monkeypatch.setenv(moments.CORPUS, str(corpus))
    assert moments.artifact(TARGET, DATA, [0, 1], hparams(), 0).key == spec_of(corpus).key


@pytest.mark.parametrize("name", ["missing.txt", "weights.bin"])
def test_a_corpus_that_is_no_text_file_is_one_line(tmp_path, name):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match="not a text file"):
        spec_of(tmp_path / name)


def test_train_prompts_need_train_records():
    without = dataclasses.replace(DATA, train=0)
    with pytest.raises(UserError, match=r"keeps none for training → datasets: .*train: 200"):
        moments.artifact(TARGET, without, [4], hparams(moments="train_prompts"), 0)


def test_an_artifact_is_known_by_all_that_decides_it_and_not_by_a_path(corpus, tmp_path):
    elsewhere, changed = tmp_path / "elsewhere.txt", tmp_path / "changed.txt"
    elsewhere.write_bytes(corpus.read_bytes())
    changed.write_text(corpus.read_text() + " more")
    first = spec_of(corpus).key
    assert spec_of(elsewhere).key == first
    others = [
        spec_of(changed),
        spec_of(corpus, layers=(0,)),
        spec_of(corpus, seed=1),
        spec_of(corpus, moments_tokens=201),
        spec_of(corpus, moments_ridge=1e-5),
        moments.artifact(
            dataclasses.replace(TARGET, sha256="other"), DATA, (0, 1), hparams(moments_path=str(corpus)), 0
        ),
        moments.artifact(TARGET, DATA, (0, 1), hparams(moments="train_prompts"), 0),
    ]
    assert len({first, *(spec.key for spec in others)}) == 8


def test_a_path_is_not_part_of_an_identity_and_is_refused_where_nothing_reads_it():
    assert hparams(moments_path="a.txt").identity() == hparams().identity()
    assert hparams(moments="published", moments_path="a").identity() == hparams(moments="published").identity()
    for source in ("train_prompts", "identity"):
        with pytest.raises(ValueError, match=f"moments_path is read with .* not with {source}"):
            hparams(moments=source, moments_path="a.txt")


def test_a_corpus_that_changes_makes_another_artifact(corpus):
    before = spec_of(corpus).key
    corpus.write_text("something else")
    assert spec_of(corpus).key != before


def write_published(folder, model, layer, moment_KK, count=1000):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.layout.value_matrix.format(layer)}_float32_mom2_100000.npz"
    np.savez(
        path,
        **{
            "mom2.constructor": "util.runningstats.SecondMoment()",
            "mom2.count": np.array(count),
            "mom2.mom2": (moment_KK * count).float().numpy(),
            "sample_size": np.array(100000),
        },
    )
    return path


def published(model, folder, layers):
    target = dataclasses.replace(TARGET, name="llama2-7b" if model.spec.architecture != "gptj" else "gpt-j-6b")
    return moments.artifact(target, DATA, layers, hparams(moments="published", moments_path=str(folder)), 0)


def test_published_sums_become_means(model, tmp_path):
    expected = {layer: random_moment(48, seed=layer) for layer in (0, 1)}
    for layer, moment_KK in expected.items():
        write_published(tmp_path / "wikipedia_stats", model, layer, moment_KK)
    found = built(model, published(model, tmp_path, [0, 1]), tmp_path / "a")
    for layer, moment_KK in expected.items():
        torch.testing.assert_close(found[layer], moment_KK, rtol=1e-5, atol=1e-5)
    assert moments.tokens(tmp_path / "a") == 1000


def test_published_statistics_are_known_by_their_contents(tmp_path):
    model = tiny_model("llama")
    keys = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_published(tmp_path / name, model, 0, random_moment(48, seed))
        keys.append(published(model, tmp_path / name, [0]).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("folder", "found"), [("none", "no"), ("", "2 files")])
def test_statistics_that_are_missing_or_doubtful_are_one_line(tmp_path, folder, found):
    model = tiny_model("llama")
    for name in ("one", "two"):
        write_published(tmp_path / name, model, 0, random_moment(48))
    with pytest.raises(UserError, match=rf"{found} model\.layers\.0\.mlp\.down_proj_\*mom2\*\.npz for llama2-7b → "):
        published(model, tmp_path / folder, [0])


def test_statistics_of_another_model_are_refused(tmp_path):
    model = tiny_model("llama")
    write_published(tmp_path / "stats", model, 0, random_moment(40))
    with pytest.raises(UserError, match="40 × 40 sums of 1000 keys, but this model's keys have 48 entries"):
        built(model, published(model, tmp_path, [0]), tmp_path / "a")


def test_a_broken_archive_is_one_line(tmp_path):
    model = tiny_model("llama")
    write_published(tmp_path / "stats", model, 0, random_moment(48)).write_bytes(b"not a zip")
    with pytest.raises(UserError, match="not a statistics file → download it again"):
        published(model, tmp_path, [0])


def test_published_needs_a_folder():
    with pytest.raises(UserError, match="moments_path: FOLDER"):
        moments.artifact(TARGET, DATA, [4], hparams(moments="published"), 0)
