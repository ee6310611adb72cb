"""Which mention of a subject counts, and its tokens: words in many scripts, real `▁` and `Ġ` tokenizers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.load import load, resolve
from harness.records import EditRequest
from harness.subjects import Mention, ambiguous, last_mention, token_span
from harness.tokens import joint_query
from tests.helpers.real_tokenizers import NAMES, real_tokenizer
from tests.helpers.tiny_models import ARCHITECTURES, tiny_tokenizer


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, shared, tmp_path_factory):
    return real_tokenizer(request.param, shared, tmp_path_factory.mktemp(request.param))


def subject_end(tokenizer, prompt, subject):
    """The last token of the last mention."""
    return token_span(tokenizer, prompt, last_mention(prompt, subject))[1]


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


def test_a_mention_inside_one_token_is_that_token(tokenizer):
    """France is one token of each of these tokenizers."""
    text = "The capital of France is"
    start = text.index("France")
    found = {token_span(tokenizer, text, Mention(start, start + length)) for length in (2, 4, 6)}
    assert len(found) == 1
    first, last = found.pop()
    assert first == last


def test_the_span_holds_the_whole_mention_and_nothing_before_or_behind(tokenizer):
    text, subject = "The mother tongue of Danielle Darrieux is", "Danielle Darrieux"
    first, last = token_span(tokenizer, text, last_mention(text, subject))
    assert tokenizer.decode(tokenizer(text)["input_ids"][first : last + 1]).strip() == subject


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


MENTIONED = {
    "the same letters later inside a word": ("Art was born in Artland, near", "Art", 0),
    "the same letters before, at the end of a word": ("The Smart Art of", "Art", 10),
    "another case is another word": ("The art of Art is", "Art", 11),
    "twice: the last": ("Paris, the capital of France, is Paris indeed", "Paris", 33),
    "overlapping itself": ("New New New York", "New New", 4),
    "a genitive": ("Art's home is", "Art", 0),
    "a typographic genitive": ("Art’s home is", "Art", 0),
    "a hyphen": ("An Art-Deco house", "Art", 3),
    "quotation marks": ("The painting “Art” is", "Art", 14),
    "a line break": ("Question:\nArt\nAnswer:", "Art", 10),
    "punctuation at its end": ("What is C++?", "C++", 8),
    "punctuation at its end, then letters": ("The C++11 standard", "C++", 4),
    "full stops": ("The capital of the U.S. is", "U.S.", 19),
    "an apostrophe at its start": ("The band 'N Sync was", "'N Sync", 9),
    "a question mark": ("Who sang Où es-tu ?", "Où es-tu ?", 9),
    "digits of their own": ("In 1984 and 19845", "1984", 3),
    "Chinese without spaces": ("日本的首都是东京吗", "东京", 6),
    "Japanese with a particle": ("東京は", "東京", 0),
    "Latin letters among Japanese": ("彼はABBAのファン", "ABBA", 2),
    "Korean with a particle": ("서울은 한국의", "서울", 0),
    "Thai": ("เมืองหลวงของไทยคือ", "ไทย", 12),
    "Greek": ("Η Αθήνα είναι", "Αθήνα", 2),
    "Cyrillic": ("Москва — столица", "Москва", 0),
    "a mark of its own": ("In Zu\u0308rich", "Zu\u0308rich", 3),
    "surrounding space": ("In Peru it is", " Peru ", 3),
}


@pytest.mark.parametrize(("text", "subject", "start"), MENTIONED.values(), ids=list(MENTIONED))
def test_the_last_mention_as_words_of_its_own_counts(text, subject, start):
    assert last_mention(text, subject) == (start, start + len(subject.strip()))


UNMENTIONED = {
    "the start of a word": ("Artland is in", "Art", "occurs only inside another word in its prompt 'Artland is in'"),
    "the end of a word": ("The Smart is", "mart", "occurs only inside another word in"),
    "the middle of a word": ("The Bartók and Art are", "art", "occurs only inside another word in"),
    "a plural": ("The Apples are", "Apple", "occurs only inside another word in"),
    "a longer number": ("Boeing 747 is", "Boeing 74", "occurs only inside another word in"),
    "a letter that a mark changes": ("The Cafe\u0301 is", "Cafe", "occurs only inside another word in"),
    "a mark and more letters": ("Zu\u0308rich is", "Zu\u0308", "occurs only inside another word in"),
    "Cyrillic": ("Московский is", "Моск", "occurs only inside another word in"),
    "a Persian plural": ("کتاب\u200cها", "کتاب", "occurs only inside another word in"),
    "a Thai syllable with another tone": ("ไทย\u0e48", "ไทย", "occurs only inside another word in"),
    "another case": ("The ART of", "Art", "is written 'ART' in its prompt 'The ART of'"),
    "another text": ("The mother tongue of", "Curie", "is not in its prompt 'The mother tongue of'"),
}


@pytest.mark.parametrize(("text", "subject", "how"), UNMENTIONED.values(), ids=list(UNMENTIONED))
def test_a_subject_that_is_not_mentioned_is_refused_with_the_reason(text, subject, how):
    with pytest.raises(ValueError, match=re.escape(f"the subject {subject!r} {how}")):
        last_mention(text, subject)


@pytest.mark.parametrize("subject", ["", " "])
def test_a_mention_of_nothing_is_refused(subject):
    with pytest.raises(ValueError, match="no subject is given for the prompt 'Paris is'"):
        last_mention("Paris is", subject)


ascii_text = st.text("ab1 .'-", max_size=12)


@given(ascii_text, st.text("ab1+.", min_size=1, max_size=3), ascii_text)
def test_in_plain_text_a_mention_is_what_a_regular_expression_finds(before, subject, behind):
    text = f"{before}{subject}{behind}"
    inside = r"(?<![a-z0-9])" if subject[0].isalnum() else ""
    outside = r"(?![a-z0-9])" if subject[-1].isalnum() else ""
    found = [match.start() for match in re.finditer(f"(?={inside}{re.escape(subject)}{outside})", text)]
    if found:
        assert last_mention(text, subject).start == found[-1]
    else:
        with pytest.raises(ValueError, match="subject"):
            last_mention(text, subject)


def test_where_the_letters_occur_repeatedly_the_record_of_a_cell_says_which_are_edited():
    tokenizer = tiny_tokenizer("llama")
    prompts = ("Paris was born in Parisland, near", "Paris is", "Iceland is")
    requests = [EditRequest(f"r{n}", prompt, "Paris", "Rome", "") for n, prompt in enumerate(prompts[:2])]
    requests.append(EditRequest("r2", prompts[2], "", "Rome", ""))
    tokens = token_span(tokenizer, prompts[0], Mention(0, 5))
    assert ambiguous(tokenizer, requests) == {"r0": {"occurrences": 2, "characters": (0, 5), "tokens": tokens}}
    ids = tokenizer(prompts[0])["input_ids"]
    assert tokenizer.decode(ids[tokens[0] : tokens[1] + 1]).strip() == "Paris"
