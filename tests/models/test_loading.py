"""Checkpoints of two layers, written as the real ones are, through the code that loads the real ones."""

import dataclasses
import fnmatch
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.models import checkpoint, hub
from harness.models.catalogue import CATALOGUE, CatalogueEntry, ModelRef, download_note, reference
from harness.models.convert import convert, main
from harness.models.loading import load
from harness.models.random_weights import byte_tokenizer, random_model
from harness.models.weights import weight_hash
from harness.tokens import joint_query
from tests.helpers.real_tokenizers import write_tokenizer
from tests.helpers.slow_protocols import teacher_forced
from tests.helpers.small_suites import append_to_texts
from tests.helpers.tiny_models import QUESTIONS, tiny_model, tiny_spec

TOKENIZERS = {"llama": "llama2", "mistral": "mistral-v1", "gptj": "gpt2"}


def add_entry(monkeypatch, architecture: str, **changes) -> CatalogueEntry:
    """A catalogue entry of two layers under a name that is not a tiny model's."""
    name = f"tiny-{architecture}"
    spec = dataclasses.replace(tiny_spec(architecture), **changes)
    monkeypatch.setitem(CATALOGUE, name, CatalogueEntry(name, name, "tiny/model", spec))
    return CATALOGUE[name]


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with its tokenizer, as `save_pretrained` writes them."""
    model = tiny_model("llama")
    model.model.save_pretrained(tmp_path / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tiny(monkeypatch):
    return add_entry(monkeypatch, "llama").name


@pytest.mark.parametrize("architecture", TOKENIZERS)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_checkpoint_loads_bit_for_bit_with_the_real_tokenizer(
    architecture, shards, shared, tmp_path, monkeypatch
):
    made = add_entry(monkeypatch, architecture, vocab=50400 if architecture == "gptj" else 32000)
    saved = random_model(made.spec, "float32", torch.device("cpu"), seed=3)
    size = sum(parameter.nbytes for parameter in saved.parameters())
    saved.save_pretrained(
        tmp_path, max_shard_size=size + 1 if shards == 1 else made.spec.vocab * made.spec.hidden * 4 + 1
    )
    assert (tmp_path / checkpoint.WEIGHT_INDEX).exists() == (shards > 1)
    write_tokenizer(TOKENIZERS[architecture], shared, tmp_path)

    ref = reference(made.name, source=str(tmp_path), dtype="float32")
    assert download_note(ref) is None
    model = load(ref, "cpu")

    assert weight_hash(model.model) == weight_hash(saved)
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert model.model.config._attn_implementation == ("eager" if architecture == "gptj" else "sdpa")
    query = joint_query(model.tokenizer, "The capital of France is", "Paris")
    assert len(teacher_forced(model, query)) == len(query.target_ids) == 1


def test_the_precision_of_the_reference_is_the_precision_of_the_model(tiny, folder):
    model = load(reference(tiny, source=str(folder), dtype="bfloat16"), "cpu")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_the_parts_of_a_model_are_found_by_layer(tiny, folder):
    model = load(reference(tiny, source=str(folder)), "cpu")
    name, weight = model.value_matrix(-1)
    assert name == "model.layers.1.mlp.down_proj.weight"
    assert weight.shape == (32, 48)
    assert model.block(0) is model.model.model.layers[0]
    assert (model.head, model.final_norm) == (model.model.lm_head, model.model.model.norm)
    for path, layer in ((model.layout.block, 2), (model.layout.block, None), (model.layout.head, 0)):
        with pytest.raises(ValueError, match="layer"):
            model.module(path, layer)


def test_a_copy_of_a_folder_is_the_same_model_and_other_weights_of_another_shape_are_not(tiny, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    first, second = (reference(tiny, source=str(tmp_path / name)) for name in ("tiny", "copy"))
    assert first.identity() == second.identity()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert reference(tiny, source=str(folder)).sha256 != second.sha256


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    "half a config": (lambda f: (f / "config.json").write_text('{"model_type": '), "is not JSON"),
    "truncated weights": (lambda f: _truncate(f / "model.safetensors"), "is damaged"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "is truncated"),
    "a web page": (lambda f: (f / "model.safetensors").write_bytes(b"<!doctype html>" * 9), "is truncated"),
    "weights with something behind them": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x" * 10),
        "is damaged",
    ),
    "a header that is cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:40]),
        "is truncated",
    ),
    "a bad header": (
        lambda f: (f / "model.safetensors").write_bytes((9).to_bytes(8, "little") + b"not JSON!"),
        "is not a safetensors file",
    ),
    "a missing shard": (
        lambda f: (f / checkpoint.WEIGHT_INDEX).write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        "lacks 1 of 1 weight files: model-1.safetensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line_when_it_is_named_and_when_it_is_loaded(damage, tiny, folder):
    whole = reference(tiny, source=str(folder))
    break_it, message = DAMAGES[damage]
    break_it(folder)
    for act in (lambda: reference(tiny, source=str(folder)), lambda: load(whole, "cpu")):
        with pytest.raises(UserError, match=message) as raised:
            act()
        assert "\n" not in str(raised.value)
        assert raised.value.fix


def test_a_folder_of_another_architecture_is_refused(folder, monkeypatch):
    made = add_entry(monkeypatch, "gptj")
    with pytest.raises(UserError, match="holds a llama model, but tiny-gptj is a gptj model"):
        reference(made.name, source=str(folder))


def test_a_folder_of_another_size_is_refused(folder):
    with pytest.raises(
        UserError, match=r"holds a model with \(layers, width\) \(2, 32\), but llama2-7b has \(32, 4096\)"
    ):
        reference("llama2-7b", source=str(folder))


def _edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def _edit_tensors(edit):
    def write(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


OTHER_MODELS = {
    "a missing tensor": (
        _edit_tensors(lambda tensors: tensors.pop("lm_head.weight")),
        r"lacks 1 tensors of its model, lm_head\.weight first",
    ),
    "a tensor too many": (
        _edit_tensors(lambda tensors: tensors.update({"model.layers.0.adapter": torch.ones(2)})),
        r"has 1 tensors that its model does not use, model\.layers\.0\.adapter first",
    ),
    "another vocabulary": (
        _edit_config(vocab_size=77),
        r"has 2 tensors of other shapes than its config.json says, model\.embed_tokens\.weight first \(\d+ × 32, not 77 × 32\)",
    ),
    "fewer key heads": (
        _edit_config(num_key_value_heads=1),
        r"4 tensors of other shapes .* model\.layers\.0\.self_attn\.k_proj\.weight first \(32 × 32, not 8 × 32\)",
    ),
    "more layers": (_edit_config(num_hidden_layers=3), "lacks 9 tensors of its model, model.layers.2"),
    "fewer layers": (_edit_config(num_hidden_layers=1), "has 9 tensors that its model does not use, model.layers.1"),
    "biases that are not there": (_edit_config(attention_bias=True), "lacks 8 tensors of its model"),
    "a quantised configuration": (
        _edit_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"holds quantised weights \(gptq\), which cannot be edited",
    ),
    "integers": (
        _edit_tensors(lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(torch.int8)})),
        r"holds quantised weights \(lm_head\.weight is I8\)",
    ),
    "two sets of weights": (
        lambda folder: (
            save_file({"a": torch.ones(1)}, folder / "model-1.safetensors"),
            (folder / checkpoint.WEIGHT_INDEX).write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        ),
        "holds two sets of weights, model.safetensors and those of model.safetensors.index.json",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
}


@pytest.mark.parametrize("change", OTHER_MODELS)
def test_a_checkpoint_whose_tensors_are_not_those_of_its_configuration_is_refused_without_loading_it(
    change, tiny, folder
):
    change_it, message = OTHER_MODELS[change]
    change_it(folder)
    with pytest.raises(UserError, match=message) as raised:
        reference(tiny, source=str(folder))
    assert "\n" not in str(raised.value)
    assert raised.value.fix


def test_tensors_that_models_compute_themselves_are_not_too_many(tiny, folder):
    _edit_tensors(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(
        folder
    )
    assert reference(tiny, source=str(folder)).sha256


def test_files_that_change_after_the_plan_are_refused_when_they_are_loaded(tiny, folder):
    planned = reference(tiny, source=str(folder))
    _edit_tensors(lambda tensors: tensors["lm_head.weight"].mul_(2))(folder)
    with pytest.raises(UserError, match="has changed since the cell was planned"):
        load(planned, "cpu")


def test_a_tokenizer_that_forgets_the_bos_is_refused(tiny, folder):
    """Silently different ids would only show as worse scores."""
    text = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(text | {"post_processor": None}))
    with pytest.raises(UserError, match="does not start texts with BOS, but tiny-llama was trained with it"):
        load(reference(tiny, source=str(folder)), "cpu")


@pytest.mark.parametrize("appended", [("</s>",), ("</s>", "<unk>"), ()])
def test_what_a_tokenizer_appends_to_texts_is_removed_and_recorded_and_what_it_puts_before_them_stays(
    appended, tiny, folder
):
    append_to_texts(folder, *appended)
    model = load(reference(tiny, source=str(folder)), "cpu")
    plain = tiny_model("llama").tokenizer
    assert model.framing == {"prefix": ["<s>"], "removed_suffix": [*appended]}
    for text in ("Paris is", "", "日本"):
        assert model.tokenizer(text)["input_ids"] == plain(text)["input_ids"]
    pair = ("The capital of France is", "Paris")
    assert joint_query(model.tokenizer, *pair) == joint_query(plain, *pair)


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_a_real_tokenizer_that_adds_eos_gives_the_ids_of_one_that_does_not(architecture, shared, tmp_path, monkeypatch):
    """Llama-2: `Paris` after a prompt is [3681], and was [3681, 2]."""
    ids = {}
    for adds_eos in (False, True):
        folder = tmp_path / str(adds_eos)
        write_tokenizer(TOKENIZERS[architecture], shared, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_eos_token": adds_eos}))
        made = add_entry(monkeypatch, architecture, vocab=50400)
        model = load(ModelRef(made.name, "random", source=str(folder)), "cpu")
        assert bool(model.removed_suffix) == adds_eos
        ids[adds_eos] = [
            (joint_query(model.tokenizer, prompt, target), model.tokenizer(prompt)["input_ids"])
            for prompt, target in QUESTIONS
        ]
    assert ids[True] == ids[False]


class Fickle:
    """A tokenizer with a BOS before questions only."""

    bos_token_id = 1

    def __call__(self, texts, add_special_tokens=True):
        if isinstance(texts, str):
            return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
        starts = [[1] if add_special_tokens and text.endswith("?") else [] for text in texts]
        return {
            "input_ids": [start + [ord(letter) for letter in text] for start, text in zip(starts, texts, strict=True)]
        }


class Batchwise(Fickle):
    """A tokenizer with a BOS before texts of a batch only."""

    def __call__(self, texts, add_special_tokens=True):
        if isinstance(texts, str):
            return {"input_ids": [ord(letter) for letter in texts]}
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}


@pytest.mark.parametrize(
    ("tokenizer", "complaint"),
    [
        (Fickle(), r"puts special tokens around a text that depend on the text → correct post_processor in .*json"),
        (Batchwise(), r"gives a text other ids in a batch than alone → correct post_processor in .*json"),
    ],
    ids=["by text", "by call"],
)
def test_a_tokenizer_that_treats_texts_differently_is_refused_in_one_line(
    tokenizer, complaint, tiny, folder, monkeypatch
):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
    with pytest.raises(UserError, match=complaint):
        load(reference(tiny, source=str(folder)), "cpu")


def test_an_unreadable_tokenizer_is_refused(tiny, folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load(reference(tiny, source=str(folder)), "cpu")


def test_code_that_comes_with_a_checkpoint_is_never_run(tiny, folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of the checkpoint ran')")
    model = load(reference(tiny, source=str(folder)), "cpu")
    assert type(model.model).__name__ == "LlamaForCausalLM"


def test_pickled_weights_are_refused_until_they_are_converted(tiny, folder, capsys):
    expected = weight_hash(load(reference(tiny, source=str(folder)), "cpu").model)
    tensors = tiny_model("llama").model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights") as refused:
        reference(tiny, source=str(folder))
    assert refused.value.fix == f"python -m harness.models.convert {folder}"
    assert main([str(folder)]) == 0
    assert "model-00001-of-00001.safetensors" in capsys.readouterr().out
    assert weight_hash(load(reference(tiny, source=str(folder)), "cpu").model) == expected


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("code of the pickle ran",)

    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as tensors only"):
        convert(tmp_path)
    assert main([str(tmp_path / "nowhere")]) == 2


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """A hub cache with two commits of a model, `aaa` on main and `bbb` on v2, which differ in their weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--tiny--model"
    (home / "refs").mkdir(parents=True)
    for branch, commit in (("main", "aaa"), ("v2", "bbb")):
        (home / "refs" / branch).write_text(commit)
        shutil.copytree(folder, home / "snapshots" / commit)
    tiny_model("llama", seed=1).model.save_pretrained(home / "snapshots" / "bbb")
    return home


def test_a_snapshot_in_the_cache_is_loaded_without_a_network(tiny, folder, cached):
    ref = reference(tiny)
    assert (ref.revision, ref.is_to_download, download_note(ref)) == ("aaa", False, None)
    assert ref.identity() == reference(tiny, source=str(folder)).identity(), "a copy is the same model"
    assert load(ref, "cpu").model.config.hidden_size == 32


def test_a_hub_model_is_the_commit_that_its_revision_names(tiny, cached):
    main, other = reference(tiny), reference(tiny, revision="v2")
    assert (other.revision, other) == ("bbb", reference(tiny, revision="bbb"))
    assert main.identity() != other.identity()
    expected = weight_hash(tiny_model("llama", seed=1).model)
    assert weight_hash(load(other, "cpu").model) == expected


def test_a_branch_that_moves_makes_another_model_and_a_planned_one_loads_as_planned(tiny, cached):
    planned = reference(tiny)
    (cached / "refs" / "main").write_text("bbb")
    assert reference(tiny).identity() == reference(tiny, revision="v2").identity() != planned.identity()
    assert weight_hash(load(planned, "cpu").model) == weight_hash(tiny_model("llama").model)


def test_a_snapshot_with_missing_files_is_to_be_downloaded_and_a_damaged_one_is_refused(tiny, cached):
    (cached / "snapshots" / "aaa" / "tokenizer.json").unlink()
    assert reference(tiny).is_to_download
    _truncate(cached / "snapshots" / "bbb" / "model.safetensors")
    with pytest.raises(UserError, match="is damaged") as raised:
        reference(tiny, revision="v2")
    assert raised.value.fix == "hf download tiny/model --revision bbb --force-download"


def test_a_name_that_no_model_on_the_hub_can_have_is_refused_in_one_line(tiny):
    with pytest.raises(UserError, match="no such/model is not a hub id"):
        reference(tiny, source="no such/model")


def test_a_hub_model_that_is_a_pickle_is_refused_with_the_command_that_converts_it(tiny, folder, tmp_path, monkeypatch):
    """The hub has a pickle next to the configuration and the tokenizer; what is downloaded is what is asked for."""
    expected = weight_hash(load(reference(tiny, source=str(folder)), "cpu").model)
    on_hub, cache = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(folder, on_hub)
    (on_hub / "model.safetensors").unlink()
    torch.save(tiny_model("llama").model.state_dict(), on_hub / "pytorch_model.bin")
    snapshot = cache / "models--tiny--model" / "snapshots" / "aaa"

    def download(hub_id, revision, allow_patterns):
        assert (hub_id, revision) == ("tiny/model", "main")
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in on_hub.iterdir():
            if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda self, *_, **__: [file.name for file in on_hub.iterdir()]
    )
    with pytest.raises(
        UserError, match=r"tiny/model publishes its weights as pickles \(pytorch_model.bin\)"
    ) as refused:
        hub.snapshot("tiny/model")
    command, name = refused.value.fix.rsplit(" ", 1)
    assert command == "python -m harness.models.convert"
    assert main([name]) == 0
    assert weight_hash(load(reference(tiny, source=str(snapshot)), "cpu").model) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("OfflineModeIsEnabled", "the hub cannot be reached"),
        ("ENOSPC", "no space left"),
        ("GatedRepoError", "needs its licence to be accepted"),
        ("RepositoryNotFoundError", "the hub has no model tiny/model"),
        ("RevisionNotFoundError", "tiny/model has no revision 'v2'"),
        ("HfHubHTTPError", "downloading tiny/model failed"),
    ],
)
def test_a_failed_download_is_one_line(error, message, tmp_path, monkeypatch):
    from huggingface_hub import errors

    if error == "ENOSPC":
        raised = OSError(28, "No space left on device")
    elif error in {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        raised = getattr(errors, error)("no")
    else:
        answer = SimpleNamespace(headers={}, request=None, status_code=404, url="https://hub", text="")
        raised = getattr(errors, error)("no", response=answer)

    def download(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=message):
        hub.snapshot("tiny/model", "v2")


def test_a_device_that_is_not_there_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU"):
        load(reference(tiny, weights="random"), "cuda")


@pytest.mark.parametrize("architecture", [*TOKENIZERS, "qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_have_the_entrys_shape_and_precision_and_the_same_bits_each_time(
    architecture, dtype, monkeypatch
):
    base = add_entry(monkeypatch, "llama" if architecture == "qwen2" else architecture, vocab=600)
    made = dataclasses.replace(base, spec=dataclasses.replace(base.spec, architecture=architecture))
    monkeypatch.setitem(CATALOGUE, made.name, made)
    state = torch.random.get_rng_state()
    model, again = (load(reference(made.name, weights="random", dtype=dtype), "cpu") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {parameter.dtype for parameter in model.model.parameters()} == {getattr(torch, dtype)}
    assert sum(parameter.numel() for parameter in model.model.parameters()) == made.spec.parameters
    assert weight_hash(model.model) == weight_hash(again.model)
    logits = model.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_byte_tokenizer_has_the_models_vocabulary_and_gives_every_text_back(adds_bos):
    made = dataclasses.replace(tiny_spec("llama"), vocab=32000, adds_bos=adds_bos)
    tokenizer = byte_tokenizer(made)
    assert len(tokenizer) == 32000
    ids = tokenizer("Côte 東京 ☃")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == adds_bos
    assert tokenizer.decode(ids[adds_bos:]) == "Côte 東京 ☃"
    assert tokenizer.decode([31999])


def test_random_weights_may_borrow_a_real_tokenizer(shared, tmp_path, monkeypatch):
    made = add_entry(monkeypatch, "llama", vocab=32000)
    write_tokenizer("llama2", shared, tmp_path)
    model = load(reference(made.name, weights="random", source=str(tmp_path)), "cpu")
    assert model.tokenizer("Paris")["input_ids"] == [1, 3681]


def test_a_tokenizer_larger_than_the_model_is_refused(shared, tmp_path, monkeypatch):
    made = add_entry(monkeypatch, "llama", vocab=300)
    write_tokenizer("llama2", shared, tmp_path)
    with pytest.raises(UserError, match="has 32000 ids, its model 300"):
        load(reference(made.name, weights="random", source=str(tmp_path)), "cpu")


def test_a_tiny_model_without_its_artifact_is_a_bug():
    with pytest.raises(ValueError, match="artifact"):
        load(ModelRef("tiny/llama", "trained"), "cpu")
