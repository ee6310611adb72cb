"""Contradictions among records, against a slow twin that compares every pair of them."""

from hypothesis import given
from hypothesis import strategies as st

from harness.data.conflicts import Conflicts, consistent, count
from harness.records import EditRecord, Probe

TEXTS, ANSWERS = st.sampled_from("PQRS"), st.sampled_from("xyz")
PROBES = st.builds(Probe, TEXTS, ANSWERS)


@st.composite
def records(draw, size=5):
    """Records with prompts of their own, and few texts, so that many of them contradict each other."""
    prompts = draw(st.lists(TEXTS, max_size=size, unique=True))
    return [
        EditRecord(
            str(number),
            prompt,
            draw(st.sampled_from("ab")),
            draw(ANSWERS),
            draw(ANSWERS),
            rephrases=tuple(draw(st.lists(TEXTS, max_size=2, unique=True))),
            locality=tuple(draw(st.lists(PROBES, max_size=1))),
            portability=tuple(draw(st.lists(PROBES, max_size=1))),
            relation=draw(st.sampled_from(["", "r"])),
        )
        for number, prompt in enumerate(prompts)
    ]


def slow_count(edits):
    pairs = [(one, other) for one in edits for other in edits]
    return Conflicts(
        unchanged=sum(one.target_new == one.ground_truth for one in edits),
        facts=sum(
            bool(one.relation)
            and any((other.subject, other.relation) == (one.subject, one.relation) for other in edits[:number])
            and next(
                other.target_new for other in edits if (other.subject, other.relation) == (one.subject, one.relation)
            )
            != one.target_new
            for number, one in enumerate(edits)
        ),
        rephrases=sum(
            text == other.prompt and one.target_new != other.target_new
            for one, other in pairs
            for text in one.rephrases
        ),
        shared_rephrases=sum(
            next(other for other in edits if text in other.rephrases).target_new != one.target_new
            for one in edits
            for text in one.rephrases
            if text not in [other.prompt for other in edits]
        ),
        locality=sum(probe.prompt == other.prompt for one, other in pairs for probe in one.locality),
        portability=sum(
            probe.prompt == other.prompt and probe.answer != other.target_new
            for one, other in pairs
            for probe in one.portability
        ),
    )


@given(records())
def test_the_counts_are_those_of_comparing_every_pair(edits):
    assert count(edits) == slow_count(edits)


@given(records())
def test_of_contradictory_records_the_first_is_kept_and_the_rest_do_not_contradict_each_other(edits):
    kept = list(consistent(edits))

    assert not slow_count(kept)
    for number, record in enumerate(edits):
        before = [other for other in kept if int(other.id) < number]
        assert (record in kept) == (not slow_count([*before, record]))


def test_contradictions_are_described_by_kind():
    assert str(Conflicts(unchanged=34, locality=1)) == "34 edits change nothing, 1 locality probe is an edited prompt"
    assert not Conflicts()
