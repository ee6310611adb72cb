"""Where a subject ends: real `▁` and `Ġ` tokenizers, subjects at every kind of place, against all prefixes of a prompt."""

import pytest

from harness.data.load import load, resolve
from harness.errors import UserError
from harness.tokens import joint_query
from methods.common.rewrites import subject_end
from tests.helpers.real_tokenizers import NAMES, real_tokenizer
from tests.helpers.tiny_models import ARCHITECTURES, tiny_tokenizer


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, shared, tmp_path_factory):
    return real_tokenizer(request.param, shared, tmp_path_factory.mktemp(request.param))


def end_text(tokenizer, prompt, subject):
    """The prompt up to and including the token that was found, and up to the one before it, as text."""
    ids = tokenizer(prompt)["input_ids"]
    end = subject_end(tokenizer, prompt, subject)
    read = [tokenizer.decode(ids[:stop], skip_special_tokens=True).strip() for stop in (end + 1, end)]
    return read[0], read[1]


CASES = {
    "in the middle": ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
    "at the very start": ("Danielle Darrieux was born in", "Danielle Darrieux"),
    "the whole prompt": ("Danielle Darrieux", "Danielle Darrieux"),
    "at the end": ("Who is Danielle Darrieux", "Danielle Darrieux"),
    "before a full stop": ("I met Danielle Darrieux. She spoke", "Danielle Darrieux"),
    "before an apostrophe": ("Danielle Darrieux's mother tongue is", "Danielle Darrieux"),
    "in quotation marks": ("'Toko Yasuda' plays the", "Toko Yasuda"),
    "behind a line break": ("Question:\nDanielle Darrieux\nAnswer:", "Danielle Darrieux"),
    "several spaces": ("The   Eiffel Tower   is in", "Eiffel Tower"),
    "accents": ("What is the capital of Côte d'Ivoire?", "Côte d'Ivoire"),
    "an accent at the end": ("The river Lužická Nisa Ú is in", "Lužická Nisa Ú"),
    "Chinese": ("The capital of 日本 is", "日本"),
    "rare characters": ("The meaning of 𒀭𒂗 is", "𒀭𒂗"),
    "a mark of two code points": ("In Zu\u0308rich", "Zu\u0308rich"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_token_is_the_first_that_completes_the_subject(tokenizer, case):
    """Decoding up to it has read the whole subject, decoding up to the token before has not."""
    prompt, subject = CASES[case]
    read, before = end_text(tokenizer, prompt, subject)
    assert subject in read
    assert subject not in before


@pytest.mark.parametrize("space", ["", " "])
def test_space_around_a_subject_or_behind_a_prompt_changes_nothing(tokenizer, space):
    plain = subject_end(tokenizer, "The mother tongue of Danielle Darrieux is", "Danielle Darrieux")
    padded = f"{space}Danielle Darrieux{space}"
    assert subject_end(tokenizer, f"The mother tongue of Danielle Darrieux is{space}", padded) == plain


def test_of_two_occurrences_the_last_counts(tokenizer):
    prompt = "Paris, the capital of France, is Paris indeed"
    read, before = end_text(tokenizer, prompt, "Paris")
    assert (read.count("Paris"), before.count("Paris")) == (2, 1)


def test_letters_that_follow_take_the_token_they_share(tokenizer):
    """`Apple` in `Apples` ends where the model has read the s, if they are one token."""
    prompt = "The Apples and Francesca"
    ids = tokenizer(prompt)["input_ids"]
    for subject in ("Apple", "Franc"):
        end = subject_end(tokenizer, prompt, subject)
        before = tokenizer.decode(ids[:end], skip_special_tokens=True)
        up_to = tokenizer.decode(ids[: end + 1], skip_special_tokens=True)
        assert subject in up_to
        assert subject not in before


def test_a_subject_inside_one_token_is_that_token(tokenizer):
    prompt = "The capital of France is"
    found = {subject_end(tokenizer, prompt, subject) for subject in ("Fr", "Fran", "France")}
    assert len(found) == 1, "France is one token of each of these tokenizers"


def test_the_index_holds_for_the_ids_of_prompt_and_target_together(tokenizer):
    prompt, subject = "The mother tongue of Danielle Darrieux", "Danielle Darrieux"
    query = joint_query(tokenizer, prompt, "is French")
    end = subject_end(tokenizer, prompt, subject)
    assert subject in tokenizer.decode(query.prompt_ids[: end + 1])


@pytest.mark.parametrize("name", ["counterfact", "zsre"])
def test_on_real_records_it_is_the_length_of_what_ends_with_the_subject(tokenizer, shared, name):
    """ROME's own rule, which tokenises the text up to the subject's end; it agrees where no letters follow."""
    data = load(resolve(name, str(shared / "data" / name), 150, split="all"))
    for record in data.edits:
        prefix = record.prompt[: record.prompt.rfind(record.subject) + len(record.subject)]
        expected = len(tokenizer(prefix)["input_ids"]) - 1
        assert subject_end(tokenizer, record.prompt, record.subject) == expected, record.prompt


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_works_offline_with_small_tokenizers_too(architecture):
    tokenizer = tiny_tokenizer(architecture)
    for prompt, subject in (CASES["in the middle"], CASES["accents"], ("東京 is the capital of 日本", "東京")):
        read, before = end_text(tokenizer, prompt, subject)
        assert "".join(subject.split()) in "".join(read.split())
        assert "".join(subject.split()) not in "".join(before.split())


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("Marie Curie", "the subject 'Marie Curie' is not in its prompt 'The mother tongue of Danielle Darrieux is'"),
        ("danielle darrieux", "the subject 'danielle darrieux' is not in its prompt"),
        (" ", "no subject is given for the prompt 'The mother tongue of"),
    ],
)
def test_a_subject_that_is_not_there_is_one_line(subject, message):
    with pytest.raises(UserError, match=message):
        subject_end(tiny_tokenizer("llama"), "The mother tongue of Danielle Darrieux is", subject)
