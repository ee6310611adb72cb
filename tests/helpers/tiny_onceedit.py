"""Four facts, hyper-parameters for tiny models, and a context that lends a tiny plug-in."""

from contextlib import contextmanager

from harness.records import FirstEdits
from methods.onceedit.hparams import OnceEditHparams
from tests.helpers.tiny_models import tiny_model

EDITS = (
    ("The mother tongue of Danielle Darrieux is", "Iceland"),
    ("What is the capital of Côte d'Ivoire?", "Paris"),
    ("Björk was born in", "France and Reykjavík"),
    ("東京 is the capital of", "日本"),
)
UNRELATED = (
    ("The Eiffel Tower is located in", "The capital of Iceland is"),
    ("What is the mother tongue of Paris?", "What is located in the Tower?"),
    ("Yamoussoukro was born in", "Iceland was located in"),
    ("The capital of France is located in", "French is the tongue of"),
)


class FakeClock:
    def __init__(self):
        self.phases = []

    @contextmanager
    def phase(self, name):
        self.phases.append(name)
        yield


class FakeContext:
    device = "cpu"
    seed = 0

    def __init__(self, data):
        self.clock = FakeClock()
        self.data = data
        self.models = {}
        self.folders = {}
        self.steps = 0

    def load_model(self, ref):
        return self.models.setdefault(ref, tiny_model("llama", seed=7))

    def load_data(self, ref):
        return ref.cut(self.data) if isinstance(ref, FirstEdits) else self.data

    def artifact(self, spec):
        return self.folders[spec.key]

    @contextmanager
    def progress(self, description, total):
        def advance(steps=1):
            self.steps += steps

        yield advance


def hparams_with(**changes):
    values = {
        "plugin": "tinyllama-1.1b",
        "lr": 5e-3,
        "epochs": 60,
        "batch": 4,
        "lambda_weight": 0.8,
        "negatives": 2,
        "negative_weight": 1.0,
        "hard_negatives": 0.0,
        "paraphrases": 0,
        "focal_gamma": 0.0,
        "weight_decay": 0.01,
        "stop_accuracy": 1.0,
        "stop_bce": 0.05,
        "editor": "full",
        "contexts": 0,
        "replay": 1.0,
        "lora_rank": 2,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "anchors": "deepen",
        "anchor_share": 1.0,
        "relative": "deepen",
        "temperature": 20.0,
        "plugin_embeddings": "trained",
        "alpha": "learned",
        "alpha_fixed": 0.5,
        "alpha_gate": 0.0,
        "similarity_threshold": 0.6,
        "similarity_slope": 20.0,
        "similarity_subject": 0.7,
        "per_step_alpha": False,
        "keep_own": False,
        "sync": "retokenize",
        "decoder": "owner",
        "init": "zero",
        "target": "onehot",
        "search_steps": 5,
        "search_lr": 0.15,
        "decode": "exact",
        "top_k": 10,
        "eos": "deepen",
    }
    return OnceEditHparams(**values | changes)
