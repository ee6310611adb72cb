import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.models.routed import matrix, output_replaced
from harness.models.weights import weight_hash
from harness.tokens import Query
from methods.grace import Grace, GraceHparams
from methods.grace.codebook import Codebook, PendingValue, label_of
from methods.grace.training import turns
from tests.helpers.tiny_edits import FACTS, UNRELATED, Context, queries_of, read_by_head, requests_of, three_layers
from tests.helpers.tiny_models import ARCHITECTURES

HPARAMS = {
    "layer": 1,
    "distance": "euclidean",
    "radius": 1e-2,
    "expand": "coverage",
    "start": "cold",
    "replace": "last",
    "lr": 0.5,
    "steps": 6,
    "batch": 4,
    "implementation": "corrected",
}


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return three_layers(request.param)


def edit(model, facts=FACTS, **choices):
    return Grace(GraceHparams(**{**HPARAMS, **choices})).edit(model, requests_of(facts), {}, Context)


def in_blocks(model, facts, sizes, **choices):
    """The same facts, each block on top of what is kept of those before it."""
    editor = Grace(GraceHparams(**{**HPARAMS, **choices}))
    requests, edited = requests_of(facts), None
    for size in sizes:
        block, requests = requests[:size], requests[size:]
        edited = (
            editor.extend(model, edited.state(), block, {}, Context)
            if edited
            else editor.edit(model, block, {}, Context)
        )
    assert not requests
    return edited


def copied(state):
    return {name: value.clone() for name, value in state.items()}


def has_bits(state, other):
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state
    )


class SlowGrace:
    """GRACE as its authors run it: one request, one iteration at a time, the whole model, the whole codebook."""

    def __init__(self, model, hparams, fresh_ND):
        self.model, self.h, self.fresh = model, hparams, fresh_ND
        self.keys, self.values, self.radii, self.labels = [], [], [], []

    def place(self, inputs, key_id):
        """The nearest row if it is reached, else None."""
        distances = [(inputs[0, key_id] - key).norm().item() for key in self.keys]
        row = min(range(len(distances)), key=distances.__getitem__)
        return row if distances[row] <= self.radii[row] else None

    def decide(self, query_K, label, fresh_D):
        def add():
            self.keys.append(query_K)
            self.values.append(fresh_D.clone())
            self.radii.append(self.h.radius)
            self.labels.append(label)

        if not self.keys:
            return add()
        distances = [(query_K - key).norm().item() for key in self.keys]
        row = min(range(len(distances)), key=distances.__getitem__)
        if distances[row] > self.h.radius + self.radii[row]:
            return add()
        if self.labels[row] != label:
            add()
            self.radii[row] = distances[row] / 2 - 1e-5
            self.radii[-1] = distances[row] / 2
        elif distances[row] > self.radii[row]:
            self.radii[row] = distances[row] * (1 + 1e-6)
        return None

    def hook(self, key_id, values):
        def answer(inputs, outputs):
            row = self.place(inputs, key_id)
            changed = outputs.clone()
            if row is not None:
                changed[0, slice(key_id) if self.h.replace == "prompt" else key_id] = values[row]
            return changed

        return output_replaced(matrix(self.model, self.h.layer), answer)

    def edit(self, index, query):
        ids, key_id = torch.tensor([query.prompt_ids + query.target_ids]), len(query.prompt_ids) - 1
        seen = []
        with output_replaced(matrix(self.model, self.h.layer), lambda x, y: (seen.append(x), y)[1]), torch.no_grad():
            self.model.model(input_ids=ids)
        self.decide(seen[0][0, key_id], query.target_ids, self.fresh[index])
        values = torch.stack(self.values).requires_grad_(True)
        adam = torch.optim.Adam([values], lr=self.h.lr)
        for _ in range(self.h.steps):
            with self.hook(key_id, values):
                logits = self.model.model(input_ids=ids).logits[0, key_id:-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(query.target_ids))
            adam.zero_grad()
            loss.backward()
            adam.step()
        self.values = list(values.detach())

    @torch.no_grad()
    def generate(self, query):
        ids = list(query.prompt_ids)
        for _ in query.target_ids:
            with self.hook(len(query.prompt_ids) - 1, self.values):
                ids.append(int(self.model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(query.prompt_ids) :]


def slow_grace(model, facts, **choices):
    hparams = GraceHparams(**{**HPARAMS, **choices})
    shape = (len(facts), matrix(model, hparams.layer).out_features)
    slow = SlowGrace(model, hparams, torch.rand(shape, generator=torch.Generator().manual_seed(Context.seed)).double())
    for index, query in enumerate(queries_of(model, facts)):
        slow.edit(index, query)
    return slow


ALIKE = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("What capital of France is", "Yamoussoukro"),
    ("the capital of France is", "Yamoussoukro"),
    ("Björk was born in", "Reykjavík and Yamoussoukro"),
    ("the Björk was born in", "Iceland"),
    ("What capital of France is", "Yamoussoukro"),
    ("東京 is the capital of", "日本"),
]
"""The second and third share a target and are close, the fourth and fifth are close, the sixth is the second again."""


def radius_between(model):
    """A radius with which the close ones of ALIKE meet, but do not cover each other."""
    book = edit(model, ALIKE, steps=1, radius=1e-9)._memory
    return float((book.keys_NK[1] - book.keys_NK[2]).norm()) / 1.5


@pytest.mark.parametrize("replace", ["last", "prompt"])
@pytest.mark.parametrize("far", [True, False])
def test_batches_give_the_codebook_and_the_answers_of_one_request_after_the_other(replace, far, model):
    radius = 1e-2 if far else radius_between(model)
    edited = edit(model, ALIKE, radius=radius, replace=replace, batch=5)
    one_by_one = edit(model, ALIKE, radius=radius, replace=replace, batch=1)
    slow = slow_grace(model, ALIKE, radius=radius, replace=replace)
    book = edited._memory
    assert (book.splits > 0) != far
    assert (len(book) < len(ALIKE) - 1) != far, "prompts that are close share a row"
    torch.testing.assert_close(book.keys_NK, torch.stack(slow.keys), rtol=1e-6, atol=1e-6)
    assert book.radii == pytest.approx(slow.radii, rel=1e-4)
    for name, other in (("one by one", one_by_one._memory.values_ND), ("slow twin", torch.stack(slow.values))):
        error = (book.values_ND - other).abs().max().item()
        print(f"{model.ref.name} {replace} {'far' if far else 'close'}: {len(book)} keys, {name}: error {error:.1e}")
        assert error < 1e-5
    asked = queries_of(model, [*ALIKE, *UNRELATED])
    assert edited.generate(asked) == [slow.generate(query) for query in asked]


def test_an_edited_prompt_gives_its_target_and_an_unrelated_one_the_models_own_bits(model):
    facts = [
        (prompt, target) for (prompt, _), target in zip(FACTS, ["is", "of", "the", "in", "is", "the"], strict=True)
    ]
    edited = edit(model, facts, lr=1.0, steps=60)
    queries = queries_of(model, facts)
    assert all(len(query.target_ids) == 1 for query in queries)
    targets = [list(query.target_ids) for query in queries]
    assert edited.generate(queries) == edited.teacher_forced(queries) == targets
    assert WeightEditedModel(model).generate(queries) != targets
    assert edited.scope(queries) == [1.0] * len(queries)

    unrelated = queries_of(model, UNRELATED)
    assert edited.scope(unrelated) == [0.0] * len(unrelated)
    read, unedited = (read_by_head(model, each, unrelated) for each in (edited, WeightEditedModel(model)))
    assert all(map(torch.equal, read, unedited))


def codebook(keys, **choices):
    """A codebook that may be offered these keys, and the values 0, 1, 2, …"""
    keys_NK = torch.tensor(keys, dtype=torch.double)
    fresh_ND = torch.arange(len(keys), dtype=torch.double)[:, None].expand(-1, 2)
    return Codebook(GraceHparams(**{**HPARAMS, "radius": 1.0, **choices}), keys_NK, fresh_ND, 1e-9)


def routed(book, *points):
    """The row that answers a prompt of one token with this input."""
    inputs_B1K = torch.tensor(points, dtype=torch.double)[:, None]
    return book.route(inputs_B1K, inputs_B1K, torch.ones(len(points), 1, dtype=torch.bool)).tolist()


def test_a_key_far_from_all_others_gets_a_row_of_its_own():
    book = codebook([[0.0], [2.001]])
    assert [book.insert(0, (1,)), book.insert(1, (2,))] == [PendingValue(0, 0, True), PendingValue(1, 1, True)]
    assert book.radii == [1.0, 1.0]
    assert routed(book, [1.0], [1.0005], [1.002], [-1.1], [3.1]) == [0, -1, 1, -1, -1]


def test_a_near_key_with_another_label_splits_the_distance():
    book = codebook([[0.0], [1.8]])
    book.insert(0, (1,))
    assert book.insert(1, (2,)) == PendingValue(1, 1, True)
    assert book.radii == pytest.approx([0.9 - 1e-5, 0.9])
    assert routed(book, [0.899], [0.901], [1.8]) == [0, 1, 1]


def test_a_near_key_with_the_same_label_widens_the_radius_and_learns_the_same_value():
    book = codebook([[0.0], [1.8], [0.5]])
    book.insert(0, (1,))
    assert book.insert(1, (1,)) == PendingValue(0, 1, False)
    assert book.radii == pytest.approx([1.8])
    assert routed(book, [1.8]) == [0], "as far as the new key itself, in spite of rounding"
    assert book.insert(2, (1,)) == PendingValue(0, 2, False)
    assert book.radii == pytest.approx([1.8]), "it was reached already"


def test_a_moving_average_moves_the_key_half_the_way():
    book = codebook([[0.0], [1.8]], expand="moving_average")
    book.insert(0, (1,))
    book.insert(1, (1,))
    assert book.keys_NK.tolist() == [[0.9]]
    assert book.radii == pytest.approx([1.8])


def test_cosine_distance_does_not_see_length():
    book = codebook([[1.0, 0.0], [0.0, 1.0]], distance="cosine", radius=0.2)
    book.insert(0, (1,))
    book.insert(1, (2,))
    assert routed(book, [9.0, 0.1], [0.1, 5.0], [1.0, 1.0], [-1.0, 0.0]) == [0, 1, -1, -1]


def test_the_same_prompt_with_another_target_is_a_new_edit_of_its_row():
    book = codebook([[3.0], [3.0]])
    book.insert(0, (1,))
    assert book.insert(1, (2,)) == PendingValue(0, 1, True)
    assert (len(book), book.radii, routed(book, [3.0])) == (1, [1.0], [0])


def test_to_easyedit_it_is_a_row_that_nothing_reaches():
    book = codebook([[3.0], [3.0]], implementation="faithful-easyedit")
    book.insert(0, (1,))
    assert book.insert(1, (2,)) is None
    assert (len(book), routed(book, [3.0])) == (2, [-1])


def test_easyedit_looks_labels_up_from_the_other_end():
    """Two far keys with different labels, then one near the first with the first's label."""
    keys = [[0.0], [9.0], [0.5]]
    corrected, easyedit = codebook(keys), codebook(keys, implementation="faithful-easyedit")
    for book in (corrected, easyedit):
        book.insert(0, (1,))
        book.insert(1, (2,))
        book.insert(2, (1,))
    assert (len(corrected), len(easyedit)) == (2, 3)
    assert (corrected.splits, easyedit.splits) == (0, 1)


def test_easyedit_compares_means_of_labels_with_the_prompts_masks_in_them():
    short, long = Query("a", "b", (1, 2), (7, 9)), Query("a", "b", (1, 2, 3), (7, 9))
    other = Query("a", "c", (1, 2), (8, 8))
    assert label_of(short, "corrected") == label_of(long, "corrected") != label_of(other, "corrected")
    assert label_of(short, "faithful-easyedit") == label_of(other, "faithful-easyedit") == (-46.0,)
    assert label_of(long, "faithful-easyedit") == pytest.approx((-284 / 5,))


def test_a_key_is_at_no_distance_from_itself_among_many():
    """`cdist` by way of products, which it takes for more than 25 rows, would lose this."""
    keys = (100 + torch.randn(40, 64, generator=torch.Generator().manual_seed(0))).float()
    book = Codebook(GraceHparams(**{**HPARAMS, "radius": 1e-5}), keys, torch.zeros(40, 2), 1e-6)
    for request in range(40):
        book.insert(request, (request,))
    inputs_B1K = keys[:, None]
    assert book.route(inputs_B1K, inputs_B1K, torch.ones(40, 1, dtype=torch.bool)).tolist() == list(range(40))


def test_an_empty_codebook_answers_nothing():
    assert routed(codebook([[0.0]]), [0.0]) == [-1]


def test_lessons_of_one_row_keep_their_order():
    a, b, c, d = (
        PendingValue(0, 0, True),
        PendingValue(1, 1, True),
        PendingValue(0, 2, False),
        PendingValue(0, 3, False),
    )
    assert turns([a, b, c, d]) == [[a, b], [c], [d]]


def test_an_edit_again_with_another_target_gives_the_later_one(model):
    prompt = FACTS[0][0]
    edited = edit(model, [(prompt, "of"), FACTS[1], (prompt, "the")], lr=1.0, steps=40)
    (query,) = queries_of(model, [(prompt, "the")])
    assert edited.generate([query]) == [list(query.target_ids)]


def test_a_warm_start_is_what_the_matrix_gives(model):
    """With steps so small that they change nothing, the edited prompt is answered as before."""
    queries = queries_of(model, FACTS)
    edited = edit(model, start="warm", lr=1e-12, steps=1)
    assert edited.scope(queries) == [1.0] * len(queries)
    assert edited.generate(queries) == WeightEditedModel(model).generate(queries)
    assert edit(model, start="cold", lr=1e-12, steps=1).generate(queries) != WeightEditedModel(model).generate(queries)


def test_an_edit_that_is_no_number_is_answered_by_the_model_and_spoils_no_other(model):
    """A token that is no number, in one prompt only."""
    ids = [set(query.prompt_ids + query.target_ids) for query in queries_of(model, FACTS)]
    own = ids[3] - set().union(*(ids[:3] + ids[4:]))
    model.embeddings.weight[min(own)] = float("nan")
    queries = queries_of(model, FACTS[:3] + FACTS[4:])
    edited, without = edit(model, FACTS), edit(model, FACTS[:3] + FACTS[4:])
    assert edited.diagnostics()["failed"] == 1.0
    assert edited.scope(queries_of(model, FACTS)) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert without.diagnostics()["failed"] == 0.0
    assert all(len(ids) == len(query.target_ids) for ids, query in zip(edited.generate(queries), queries, strict=True))


def test_a_value_whose_loss_is_no_number_answers_nothing(model):
    """A token that is no number, within one target only: its key is sound, its loss is not."""
    queries = queries_of(model, FACTS)
    ids = [set(query.prompt_ids + query.target_ids) for query in queries]
    own = set(queries[2].target_ids[:-1]) - set(queries[2].prompt_ids) - set().union(*(ids[:2] + ids[3:]))
    model.embeddings.weight[min(own)] = float("nan")
    for replace in ("last", "prompt"):
        edited = edit(model, replace=replace)
        assert edited.diagnostics()["failed"] == 1.0
        assert edited.scope(queries) == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
        assert edited._memory.values_ND.isfinite().all()


def test_when_every_edit_fails_it_says_so(model):
    model.head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="every edit"):
        edit(model)
    model.embeddings.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="every edit"):
        edit(model)


def test_prompts_of_a_model_in_bf16_reach_their_own_rows():
    model = three_layers("llama", torch.bfloat16)
    queries = queries_of(model, FACTS)
    edited = edit(model, radius=0.2)
    assert edited.scope(queries) == [edited.scope([query])[0] for query in queries] == [1.0] * len(queries)
    assert edited._memory.values_ND.dtype == torch.float32


def test_float32_and_batches_change_values_by_rounding_only():
    for architecture in ARCHITECTURES:
        model = three_layers(architecture, torch.float32)
        together, alone = (edit(model, FACTS, batch=batch)._memory for batch in (6, 1))
        error = (together.values_ND - alone.values_ND).abs().max().item()
        print(f"{architecture} float32: error {error:.1e} of values up to {alone.values_ND.abs().max():.1f}")
        assert error < 1e-2


@pytest.mark.parametrize("replace", ["last", "prompt"])
@pytest.mark.parametrize("implementation", ["corrected", "faithful-easyedit"])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_blocks_of_one_are_one_request_after_the_other_bit_for_bit(start, implementation, replace, model):
    model.model.float()
    choices = {"radius": radius_between(model), "replace": replace, "start": start, "implementation": implementation}
    whole = edit(model, ALIKE, batch=1, **choices)
    blocks = in_blocks(model, ALIKE, [1] * len(ALIKE), batch=4, **choices)
    assert has_bits(blocks.state(), whole.state())
    assert int(whole.state()["splits"]) > 0
    asked = queries_of(model, [*ALIKE, *UNRELATED])
    assert blocks.generate(asked) == whole.generate(asked)
    assert blocks.diagnostics() == whole.diagnostics()


@pytest.mark.parametrize("replace", ["last", "prompt"])
def test_blocks_give_the_codebook_and_the_answers_of_the_slow_loop(replace, model):
    radius = radius_between(model)
    blocks = in_blocks(model, ALIKE, [3, 1, 3], radius=radius, replace=replace)
    slow = slow_grace(model, ALIKE, radius=radius, replace=replace)
    torch.testing.assert_close(blocks._memory.keys_NK, torch.stack(slow.keys), rtol=1e-6, atol=1e-6)
    assert blocks._memory.radii == pytest.approx(slow.radii, rel=1e-4)
    error = (blocks._memory.values_ND - torch.stack(slow.values)).abs().max().item()
    print(f"{model.ref.name} {replace}: error {error:.1e}")
    assert error < 1e-5
    asked = queries_of(model, [*ALIKE, *UNRELATED])
    assert blocks.generate(asked) == [slow.generate(query) for query in asked]


def test_what_is_kept_in_a_file_is_the_same_model(model, tmp_path):
    before = weight_hash(model.model)
    edited = in_blocks(model, ALIKE, [4, 3], radius=radius_between(model))
    save_file(copied(edited.state()), tmp_path / "state")
    again = Grace(GraceHparams(**{**HPARAMS, "radius": radius_between(model)})).extend(
        model, load_file(tmp_path / "state"), [], {}, Context
    )
    asked = queries_of(model, [*ALIKE, *UNRELATED])
    assert has_bits(again.state(), edited.state())
    assert again.generate(asked) == edited.generate(asked)
    assert again.teacher_forced(asked) == edited.teacher_forced(asked)
    assert again.scope(asked) == edited.scope(asked)
    assert again.diagnostics() == edited.diagnostics()
    again.revert()
    assert weight_hash(model.model) == before


def test_to_go_on_does_not_change_what_is_gone_on_from(model):
    """The later block writes to rows of the earlier one: another target for one of its prompts."""
    editor = Grace(GraceHparams(**HPARAMS))
    edited = editor.edit(model, requests_of(FACTS[:2]), {}, Context)
    before, answers = copied(edited.state()), edited.generate(queries_of(model, FACTS))
    further = editor.extend(model, edited.state(), requests_of([(FACTS[0][0], "the")]), {}, Context)
    assert not torch.equal(further.state()["values"][0], before["values"][0])
    assert has_bits(edited.state(), before)
    assert edited.generate(queries_of(model, FACTS)) == answers


def test_a_block_that_fails_altogether_is_counted_and_the_earlier_edits_stay(model):
    ids = [set(query.prompt_ids + query.target_ids) for query in queries_of(model, FACTS)]
    own = ids[3] - set().union(*(ids[:3] + ids[4:]))
    model.embeddings.weight[min(own)] = float("nan")
    edited = in_blocks(model, FACTS, [3, 1, 2])
    assert edited.diagnostics()["failed"] == 1.0
    assert edited.scope(queries_of(model, FACTS)) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    again = in_blocks(model, FACTS, [3, 1, 2, 0])
    assert has_bits(again.state(), edited.state())
