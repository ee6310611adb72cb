"""Edits of held-out relations: the same edits, learned from records of the same relations or of others only."""

import pytest

from harness.data.load import resolve, select
from harness.errors import UserError
from harness.records import DataRef, EditRecord, same_subject


def chosen(relations):
    return select(DataRef("counterfact", "synthetic", 20, train=40, unrelated=10, relations=relations))


def relations_of(records):
    return {record.relation for record in records}


def test_seen_and_unseen_edit_the_same_records_and_differ_in_what_may_be_learned():
    seen, unseen = chosen("seen"), chosen("unseen")
    assert [record.id for record in seen.edits] == [record.id for record in unseen.edits]
    assert relations_of(seen.train) & relations_of(seen.edits)
    assert not relations_of(seen.train) & relations_of(unseen.train)
    assert not relations_of(unseen.edits) & relations_of((*unseen.train, *unseen.unrelated))
    assert len(seen.train) == len(unseen.train) == 40
    assert not {record.id for record in seen.edits} & {record.id for record in (*seen.train, *seen.unrelated)}


def test_the_relations_are_part_of_the_identity_only_where_they_matter():
    plain, unseen = (resolve("counterfact", "synthetic", 5, relations=each) for each in ("all", "unseen"))
    assert "relations" not in plain.identity()
    assert unseen.identity()["relations"] == "unseen"


def test_records_without_relations_cannot_be_held_out():
    with pytest.raises(UserError, match="zsre: relations: unseen needs records of several relations"):
        resolve("zsre", "synthetic", 5, relations="unseen")


def test_records_about_one_subject_are_found_whatever_its_case():
    records = [EditRecord(str(n), "p", subject, "t", "") for n, subject in enumerate(("Rome", "rome", "Paris", "", ""))]
    assert same_subject(records) == [["0", "1"]]
