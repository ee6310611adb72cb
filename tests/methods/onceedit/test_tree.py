"""Texts with common beginnings in one pass: the tree against its definition, the pass against one text at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.onceedit.tree import Tree, hidden_at_ends
from tests.helpers.any_architecture import ANY_ARCHITECTURE, N_IDS, any_architecture, hidden_alone, tolerance

few = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6)


@st.composite
def groups(draw):
    """Groups of sequences, most of which are beginnings of one another or leave it somewhere."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        main = draw(st.lists(st.integers(0, N_IDS - 1), min_size=1, max_size=12))
        cuts = draw(st.lists(st.integers(1, len(main)), min_size=1, max_size=4))
        made.append([main[:cut] + draw(st.lists(st.integers(0, N_IDS - 1), max_size=3)) for cut in cuts])
    return made


def beginnings(sequences):
    return {tuple(sequence[:n]) for sequence in sequences for n in range(1, len(sequence) + 1)}


@given(few)
def test_a_tree_holds_every_beginning_once(sequences):
    tree = Tree.of(sequences)
    assert len(tree.ids) == len(beginnings(sequences))


@given(few)
def test_the_ancestors_of_an_end_spell_its_sequence(sequences):
    tree = Tree.of(sequences)
    for sequence, end in zip(sequences, tree.ends, strict=True):
        path = [node for node in range(len(tree.ids)) if node <= end <= tree.last[node]]
        assert [tree.ids[node] for node in path] == sequence
        assert [tree.depths[node] for node in path] == list(range(len(sequence)))


@pytest.mark.parametrize("name", ANY_ARCHITECTURE)
@given(groups=groups())
@settings(max_examples=25, deadline=None)
def test_one_pass_equals_one_sequence_at_a_time(name, groups):
    model = any_architecture(name)
    with torch.no_grad():
        hidden_ND = hidden_at_ends(model, [Tree.of(group) for group in groups])
    sequences = [sequence for group in groups for sequence in group]
    for sequence, hidden_D in zip(sequences, hidden_ND, strict=True):
        assert torch.allclose(hidden_D, hidden_alone(model, sequence), rtol=0, atol=tolerance(name))
