"""A memory in EasyEdit and in our own code: one worker for several acts, and how often both say the same."""

from harness import registry
from harness.models.edited import WeightEditedModel
from harness.models.weights import weight_hash
from tests.helpers.tiny_edits import FACTS, UNRELATED, Context, queries_of, requests_of

REPHRASED = [(f"It is known: {prompt}", target) for prompt, target in FACTS]
REQUESTS = requests_of(FACTS)


def editor_of(method, values, **changes):
    cls = registry.find_method(method, "easyedit")
    return cls(cls.Hparams(**values | changes))


def theirs(kept, editor, model, requests, artifacts=None):
    editor._worker, editor._loaded = kept.get(model.ref.name, (None, None))
    edited = editor.edit(model, requests, artifacts or {}, Context())
    kept[model.ref.name] = (editor._worker, editor._loaded)
    return edited


def ours(method, values, model, requests, artifacts=None):
    cls = registry.find_method(method)
    return cls(cls.Hparams(**values)).edit(model, requests, artifacts or {}, Context())


def questions(model):
    return queries_of(model, FACTS + REPHRASED + UNRELATED)


def share_alike(first, second, queries):
    """Of the answers under teacher forcing and in generation."""
    pairs = [
        (one, other)
        for ask in ("teacher_forced", "generate")
        for one, other in zip(getattr(first, ask)(queries), getattr(second, ask)(queries), strict=True)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def changed_share(edited, model, queries):
    """Of the answers that the unedited model would not give."""
    return 1 - share_alike(WeightEditedModel(model), edited, queries)


def weights_there(editor, model):
    """Whether the worker's model is the one here, bit for bit."""
    there = editor.worker(model).call("run", "in_worker:weights_of")
    return there == weight_hash(model.model)


def reversed_facts(count):
    """The first facts in another order, with each other's targets: another act on the same prompts."""
    prompts, targets = zip(*FACTS[:count], strict=True)
    return requests_of(list(zip(reversed(prompts), targets, strict=True)))
