"""Which records a model cannot read, with a tokenizer that counts words."""

from harness.models.context_length import Reader
from harness.plan.lengths import complaint, texts_of, too_long
from harness.records import DataRef, Dataset, EditRecord, Probe

NOTHING = Dataset(DataRef("zsre", "", 1), (), (), ())


class Words:
    """Counts words, and remembers what it was asked to count."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts):
        self.asked += texts
        return [len(text.split()) for text in texts]


def words(number, word="w"):
    return " ".join([word] * number)


def record(name, prompt="p", **probes):
    return EditRecord(name, prompt, "", "new", "old", **probes)


def data():
    return Dataset(
        NOTHING.ref,
        edits=(
            record("short"),
            record("prompt", words(12)),
            record("rephrase", rephrases=("ok", words(29))),
            record("neighbour", locality=(Probe(words(30), "a"),)),
            record("hop", portability=(Probe("q", words(31)),)),
        ),
        train=(record("learned", words(32)),),
        unrelated=(record("apart", words(33)),),
    )


def test_every_text_that_a_model_reads_counts_with_its_answer():
    found = too_long(texts_of(data()), Reader("tiny", 20, Words()))

    assert found == {"rephrase": 30, "neighbour": 31, "hop": 32, "learned": 33, "apart": 34}


def test_a_methods_prefix_counts_in_front_of_edits_only():
    assert too_long(texts_of(data()), Reader("tiny", 33, Words()), overhead=21) == {"prompt": 34, "apart": 34}
    assert too_long(texts_of(data()), Reader("tiny", 34, Words()), overhead=21) == {}


def test_texts_with_fewer_bytes_than_positions_are_not_tokenised():
    count = Words()

    assert too_long(texts_of(data()), Reader("tiny", 66, count)) == {}
    assert {len(text.split()) for text in count.asked} == {33, 34}


def test_without_a_tokenizer_nothing_is_said():
    assert too_long(texts_of(data()), Reader("tiny", 20, None)) == {}


def test_the_complaint_names_the_longest_records_first_and_not_all_of_many():
    many = {str(number): number for number in range(1000, 1008)}

    assert complaint({"7": 1003}, Reader("gpt", 256, None), "zsre") == (
        "too long for gpt (256 positions): zsre record 7 (1,003 tokens); `too_long: drop` replaces such records"
    )
    assert "zsre records 1007 (1,007 tokens), 1006" in complaint(many, Reader("gpt", 256, None), "zsre")
    assert "1003 (1,003 tokens) and 3 more;" in complaint(many, Reader("gpt", 256, None), "zsre")
