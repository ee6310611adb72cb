"""Every method on two-layer checkpoints, through the harness's own context: for the tests of what all methods must do."""

import torch

from harness import registry
from harness.evaluation.probes import probe_queries
from harness.models.catalogue import CATALOGUE, reference
from harness.models.weights import weight_hash
from harness.store.store import Store
from harness.suite import hparams
from tests.helpers.in_process import build, quiet_context
from tests.helpers.small_suites import records

LEARNED_SHIFTS = {
    "layers": [0, 1],
    "rank": 4,
    "edit_lr": 0.05,
    "lr": 1e-4,
    "train_batch": 4,
    "train_batches": 1,
    "steps": 1,
    "batch": 4,
    "micro_batch": 3,
}

OPTIONS = {
    "none": {},
    "mend": {
        "layers": [1],
        "rank": 4,
        "edit_lr": -0.05,
        "train_batch": 2,
        "steps": 4,
        "validation": 2,
        "validate_every": 2,
        "micro_batch": 3,
    },
    "retrieval": {"threshold": 0.8},
    "ike": {"threshold": 0.8, "demonstrations": 1, "demonstration_tokens": 120},
    "serac": {
        "counterfactual": "small-llama",
        "width": 8,
        "lr": 1e-3,
        "batch": 2,
        "steps": 2,
        "validation": 2,
        "validate_every": 1,
        "edit_tokens": 120,
    },
    "lora": {"rank": 4, "lr": 0.02, "steps": 6, "batch": 4, "micro_batch": 2},
    "malmen": LEARNED_SHIFTS,
    "emsedit": LEARNED_SHIFTS,
    "ultraedit": {"layers": [0, 1], "edit_lr": 0.01, "batch": 4, "micro_batch": 3},
    "wise": {"layer": 1, "steps": 8, "contexts": 1, "save_freq": 3, "merge_freq": 6, "act_ratio": 0.5},
    "grace": {"layer": 1, "steps": 8, "batch": 4, "radius": 0.5},
    "defer": {"layer": 1, "steps": 8, "lr": 0.02},
    "rome": {
        "layers": [1],
        "v_lr": 0.5,
        "v_steps": 20,
        "v_clamp": 10.0,
        "prefixes": [[5, 1]],
        "moments": "train_prompts",
    },
    "memit": {
        "layers": [0, 1],
        "v_lr": 0.5,
        "v_steps": 20,
        "v_clamp": 10.0,
        "prefixes": [[5, 1]],
        "moment_weight": 0.1,
        "micro_batch": 3,
    },
    "alphaedit": {
        "layers": [0, 1],
        "v_lr": 0.5,
        "v_steps": 20,
        "v_clamp": 10.0,
        "prefixes": [[5, 1]],
        "null_threshold": 0.02,
        "norm_weight": 1e-3,
        "batch": 4,
        "micro_batch": 3,
    },
    "ft-l": {"layer": 1, "lr": 0.02, "steps": 8, "batch": 4, "micro_batch": 2, "norm_constraint": None},
    "onceedit": {
        "plugin": "small-llama",
        "lr": 5e-3,
        "epochs": 12,
        "negatives": 1,
        "decoder": "owner",
        "alpha_gate": 0.1,
    },
}
"""Hyper-parameters of a contract test: enough to change a random model, little enough for seconds."""

METHODS = sorted(registry.methods.all().keys() - {"trace"})
"""All but causal tracing, which needs a model that knows facts."""
EDITING = [name for name in METHODS if registry.find_method(name).spec.edits]


class Bench:
    """One method on one model with everything that it needs, its artifacts built."""

    def __init__(self, folder, store, method, architecture, ends=(), variant=None, **options):
        torch.set_num_threads(1)
        like = architecture if f"tiny/{architecture}" in CATALOGUE else "llama"
        values = hparams.resolve(method, f"tiny/{like}", OPTIONS[method] | options, variant=variant).values
        cls = registry.find_method(method)
        self.editor = cls(cls.Hparams.model_validate(values))
        self.context = quiet_context(Store(store))
        data_ref = records(folder / "records")
        self.ref = reference(f"small-{architecture}")
        given = (self.ref, data_ref, 0)
        needed = self.editor.artifacts_in_sequence(*given, ends) if ends else self.editor.artifacts(*given)
        build(Store(store), self.context, needed.values())
        self.artifacts = {role: self.context.artifact(spec) for role, spec in needed.items()}
        self.data = self.context.load_data(data_ref)
        self.model = self.context.load_model(self.ref)
        self.requests = [record.request() for record in self.data.edits]
        self.queries = [
            asked.query for asked in probe_queries(self.data, self.model.tokenizer, ["reliability", "locality"])
        ]
        self.queries = self.queries[:16]

    def edit(self, requests=None):
        self.context.restart(0)
        return self.editor.edit(self.model, requests or self.requests, self.artifacts, self.context)

    def before_each_block(self, hook):
        """Of the blocks and not of the model: many edits run only some of them."""
        blocks = (self.model.block(layer) for layer in range(self.model.n_layers))
        return [block.register_forward_pre_hook(hook) for block in blocks]

    def answers(self, edited):
        return edited.teacher_forced(self.queries), edited.generate(self.queries)

    def unedited(self):
        none = registry.find_method("none")
        return self.answers(none(none.Hparams()).edit(self.model, [], {}, self.context))

    def state(self):
        """Every bit of the model, and what training may leave behind."""
        parameters = list(self.model.model.parameters())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.model.modules())
        return (
            weight_hash(self.model.model),
            [id(parameter) for parameter in parameters],
            any(parameter.requires_grad for parameter in parameters),
            any(parameter.grad is not None for parameter in parameters),
            self.model.model.training,
            hooks,
        )
