"""Facts, hyper-parameters and a context for MEND on two-layer models."""

from harness.records import DataRef, Dataset, EditRecord, EditRequest, Probe
from methods.mend.hparams import MendHparams
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import EDITS, UNRELATED, FakeContext

MATRICES = {"llama": ["gate_proj", "up_proj", "down_proj"], "gptj": ["fc_in", "fc_out"]}
MATRICES["mistral"] = MATRICES["llama"]

REQUESTS = [EditRequest(str(n), prompt, "", target, "") for n, (prompt, target) in enumerate(EDITS)]
ANSWERS = ("Iceland", "Paris and Reykjavík", "France", "mother tongue")
TRAIN = tuple(
    EditRecord(
        f"t{n}",
        prompt,
        "",
        ANSWERS[n],
        "",
        rephrases=(f"It is known that {prompt}", f"The {prompt}"),
        locality=(Probe(neighbour, ANSWERS[-1 - n]), Probe(f"What is {neighbour}", "Tower")),
    )
    for n, (prompt, neighbour) in enumerate(UNRELATED)
)
REF = DataRef("tiny", "synthetic", len(REQUESTS), train=len(TRAIN), sha256="0")


def hparams_with(architecture="llama", **changes):
    values = {
        "layers": [0, 1],
        "matrices": MATRICES[architecture],
        "rank": 4,
        "edit_lr": -0.05,
        "lr": 1e-3,
        "lr_of_edit_lr": 1e-3,
        "c_edit": 1.0,
        "c_loc": 1.0,
        "train_batch": 2,
        "steps": 6,
        "clip": 100.0,
        "validation": 1,
        "validate_every": 2,
        "patience": 6,
        "implementation": "corrected",
        "batch": 4,
        "micro_batch": 4,
        "inner_reduction": "sum_of_example_means",
    }
    return MendHparams(**values | changes)


class TinyContext(FakeContext):
    """Lends one model and the train records."""

    def __init__(self, model=None, train=TRAIN):
        super().__init__(Dataset(REF, (), train, ()))
        self.model = model or tiny_model("llama")

    def load_model(self, ref):
        return self.model


def double(model):
    """The model in float64."""
    model.model.double()
    return model
