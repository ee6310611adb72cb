import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from harness.tokens import Framing, chat_text, drop_suffix, end_ids, joint_queries, joint_query
from tests.helpers.real_tokenizers import NAMES, real_tokenizer
from tests.helpers.tiny_models import tiny_tokenizer

QUESTIONS = [
    ("The capital of France is", "Paris"),
    ("What is the capital of Côte d'Ivoire?", "Yamoussoukro"),
    ("Björk was born in", "Reykjavík"),
    ("東京 is the capital of", "日本"),
    ("The emoji is", "☃ 🦆"),
    ("It ended in", "1984"),
    ('He said "', "yes"),
    ("The mother tongue of Danielle Darrieux is", "the French language"),
]

words = st.text("abcdeé東 .'?1", min_size=1, max_size=20).filter(lambda text: text.strip())


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, shared, tmp_path_factory):
    return real_tokenizer(request.param, shared, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(("prompt", "target"), QUESTIONS)
def test_prompt_and_target_ids_are_the_joint_tokenisation(tokenizer, prompt, target):
    query = joint_query(tokenizer, prompt, target)
    assert [*query.prompt_ids, *query.target_ids] == tokenizer(f"{prompt} {target}")["input_ids"]
    assert query.prompt_ids
    assert query.target_ids


@pytest.mark.parametrize(("prompt", "target"), QUESTIONS)
def test_no_target_contains_a_bos_or_starts_with_a_lone_space(tokenizer, prompt, target):
    query = joint_query(tokenizer, prompt, target)
    assert not set(query.target_ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(query.target_ids).strip() == target
    if target.isascii() and target[0].isalpha():
        assert tokenizer.convert_ids_to_tokens(query.target_ids[0]) not in {"▁", "Ġ"}


def test_batched_tokenisation_equals_one_by_one(tokenizer):
    assert joint_queries(tokenizer, QUESTIONS) == [joint_query(tokenizer, *pair) for pair in QUESTIONS]
    assert joint_queries(tokenizer, []) == []


def test_a_target_tokenised_alone_would_start_with_bos_on_llama(shared, tmp_path):
    """The reason for joint tokenisation."""
    tokenizer = real_tokenizer("llama2", shared, tmp_path)
    assert tokenizer("Paris")["input_ids"] == [1, 3681]
    assert joint_query(tokenizer, "The capital of France is", "Paris").target_ids == (3681,)


def test_a_target_on_gpt2_is_the_token_with_a_leading_space(shared, tmp_path):
    tokenizer = real_tokenizer("gpt2", shared, tmp_path)
    assert joint_query(tokenizer, "The capital of France is", "Paris").target_ids == (
        6342,
    )  # "ĠParis"; "Paris" is 40313


def test_a_number_on_llama_keeps_the_lone_space_that_belongs_to_it(shared, tmp_path):
    """Llama splits digits, so the space before a number is a token of the text and not an artefact."""
    tokenizer = real_tokenizer("llama2", shared, tmp_path)
    pieces = tokenizer.convert_ids_to_tokens(joint_query(tokenizer, "It ended in", "1984").target_ids)
    assert pieces == ["▁", "1", "9", "8", "4"]


def test_surrounding_space_changes_nothing(tokenizer):
    assert joint_query(tokenizer, "The capital of France is ", " Paris ") == joint_query(
        tokenizer, "The capital of France is", "Paris"
    )


@pytest.mark.parametrize(("prompt", "target"), [("", "Paris"), ("The capital is", " "), (" ", "Paris")])
def test_an_empty_prompt_or_target_is_refused(prompt, target):
    with pytest.raises(ValueError, match="nothing to score"):
        joint_query(tiny_tokenizer("llama"), prompt, target)


def test_a_target_that_swallows_the_whole_prompt_is_refused():
    class Joining:
        def __call__(self, texts):
            return {"input_ids": [[len(text)] for text in texts]}

    with pytest.raises(ValueError, match="no id of the prompt"):
        joint_query(Joining(), "a", "b")


def test_a_target_that_merges_with_the_prompts_last_id_moves_the_split_before_it():
    class Joining:
        def __call__(self, texts):
            return {"input_ids": [{"New": [1, 2], "New York": [1, 3, 4]}[text] for text in texts]}

    query = joint_query(Joining(), "New", "York")
    assert (query.prompt_ids, query.target_ids) == ((1,), (3, 4))


@given(words, words)
def test_the_ids_are_the_joint_ids_and_neither_part_is_empty(prompt, target):
    tokenizer = tiny_tokenizer("gptj")
    query = joint_query(tokenizer, prompt, target)
    assert [*query.prompt_ids, *query.target_ids] == tokenizer(f"{prompt.rstrip()} {target.strip()}")["input_ids"]
    assert query.prompt_ids
    assert query.target_ids


SPECIAL = [("<s>", 1), ("</s>", 2), ("<unk>", 0)]
APPENDING = {
    "$A </s>": (processors.TemplateProcessing(single="$A </s>", special_tokens=SPECIAL), Framing((), (2,))),
    "<s> $A </s> <unk>": (
        processors.TemplateProcessing(single="<s> $A </s> <unk>", special_tokens=SPECIAL),
        Framing((1,), (2, 0)),
    ),
    "<s> <s> $A <s>": (
        processors.TemplateProcessing(single="<s> <s> $A <s>", special_tokens=SPECIAL),
        Framing((1, 1), (1,)),
    ),
    "BERT": (processors.BertProcessing(("</s>", 2), ("<s>", 1)), Framing((1,), (2,))),
    "RoBERTa": (processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), Framing((1,), (2,))),
    "bytes and template": (
        processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single="<s> $A </s>", special_tokens=SPECIAL)]
        ),
        Framing((1,), (2,)),
    ),
    "nothing": (processors.TemplateProcessing(single="<s> $A", special_tokens=SPECIAL), Framing((1,))),
}


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
@pytest.mark.parametrize(("processor", "framing"), APPENDING.values(), ids=list(APPENDING))
def test_a_tokenizer_keeps_what_it_puts_before_a_text_and_loses_what_it_appends(
    processor, framing, architecture, tmp_path
):
    backend = Tokenizer.from_str(tiny_tokenizer(architecture).backend_tokenizer.to_str())
    backend.post_processor = processor
    backend.enable_padding(length=40, direction="left")  # the harness never lets a tokenizer pad
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>")
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Paris is", "", "日本")]
    assert drop_suffix(tokenizer) == framing
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert one(["Paris is", "", "日本"])["input_ids"] == [[*framing.prefix, *ids] for ids in bare]
        assert Framing.of(one) == Framing(framing.prefix)


def test_a_tokenizer_that_goes_on_appending_is_refused():
    class Stubborn:
        def __call__(self, texts, add_special_tokens=True):
            if isinstance(texts, str):
                return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
            return {"input_ids": [[ord(letter) for letter in text] + [2] * add_special_tokens for text in texts]}

        def convert_ids_to_tokens(self, ids):
            return [{2: "</s>"}[number] for number in ids]

    with pytest.raises(ValueError, match="appends </s> to every text, which cannot be switched off"):
        drop_suffix(Stubborn())


def test_every_special_token_ends_a_turn_whether_or_not_it_has_a_role():
    """As Gemma's `<end_of_turn>`, which is neither EOS nor among the extra special tokens."""
    named = tiny_tokenizer("llama")
    backend = Tokenizer.from_str(named.backend_tokenizer.to_str())
    backend.add_special_tokens(["<end_of_turn>"])
    backend.add_tokens(["<tool>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    turn, tool = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<tool>"])
    assert turn not in tokenizer.all_special_ids
    assert end_ids(tokenizer) == end_ids(named) | {turn}
    assert tool not in end_ids(tokenizer)


def test_a_conversation_is_without_thinking_and_the_same_every_day():
    """As the templates of Qwen3, Llama 3.1 and SmolLM3 do it."""
    tokenizer = tiny_tokenizer("gptj")
    tokenizer.chat_template = (
        "\n{% macro day() %}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{% endmacro %}"
        "Today: {{ day() }}, {{ strftime_now('%B %-d, %Y') }}\n{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    )
    try:
        text = chat_text(tokenizer, [{"role": "user", "content": "Hi"}])
    finally:
        tokenizer.chat_template = None
    assert text == "\nToday: 26 Jul 2024, July 26, 2024\nHi\n<think>\n\n</think>\n\n"
