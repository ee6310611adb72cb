"""lm-eval's `local-completions` against the server of `harness serve`: its scores are those of the model in this process."""

import copy
import json
import threading
from contextlib import contextmanager

import pytest
import torch

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `serve`")
for module in ("lm_eval", "tenacity"):
    pytest.importorskip(module, reason="needs lm-eval[api]")

from harness.api import EditedModel  # noqa: E402
from harness.evaluation.capability.scores import ask, item_scores, samples  # noqa: E402
from harness.evaluation.capability.tasks import reference  # noqa: E402
from harness.live.model import LiveModel  # noqa: E402
from harness.live.server import application, listening  # noqa: E402
from harness.models.edited import WeightEditedModel  # noqa: E402
from tests.helpers.tiny_models import tiny_model  # noqa: E402

CHOICES = ["Reykjavík", "the Eiffel Tower", "French", "Paris"]
ROWS = {
    "mmlu": [
        {"subject": "facts", "question": f"{word} what is it?", "choices": CHOICES, "answer": number}
        for number, word in enumerate(("Well,", "However, however,"))
    ],
    "arc_challenge": [
        {"question": f"The mother tongue of {name} is", "choices": CHOICES[:3], "answer": 2}
        for name in ("Ann", "Bo Ek")
    ],
    "perplexity": [{"text": "The Eiffel Tower stands in Paris. " * 3}],
}


@contextmanager
def served(live):
    with listening("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(application(live, "the-cell"), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/v1/completions"
        server.should_exit = True
        thread.join(10)


def task(folder, name):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    return reference(name, path=str(file))


def over_http(live, address, model, chosen, folder):
    """What `lm_eval --model local-completions` computes with the arguments of docs/export.md."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    live.model.tokenizer.save_pretrained(folder / "tokenizer")
    api = LocalCompletionsAPI(
        base_url=address,
        model=model,
        tokenizer=str(folder / "tokenizer"),
        add_bos_token=True,
        max_length=live.model.positions,
        batch_size=2,
        max_retries=1,
    )
    return item_scores(chosen, samples(api, chosen))


@pytest.fixture
def live():
    """A tiny model and another one with the same tokenizer, in the places of an unedited and an edited model."""
    model = tiny_model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    return LiveModel(model, WeightEditedModel(other), WeightEditedModel(model), origin=None)


def test_scores_over_http_are_those_of_the_model_in_this_process(live, tmp_path):
    with served(live) as address:
        for name in ROWS:
            chosen, both = task(tmp_path, name), []
            for model, side in (("the-cell", live.edited), ("unedited", live.unedited)):
                mine, theirs = ask(side, live.model, chosen, 2), over_http(live, address, model, chosen, tmp_path)
                assert [(one.metric, one.item) for one in theirs] == [(one.metric, one.item) for one in mine]
                assert [one.value for one in theirs] == pytest.approx([one.value for one in mine], abs=1e-3)
                both.append([one.value for one in mine])
    assert both[0] != both[1], "perplexity, the last task, tells the models apart"


class WithoutProbabilities(EditedModel):
    """Chooses tokens, as SERAC does."""

    def teacher_forced(self, queries):
        return [list(query.target_ids) for query in queries]

    generate = teacher_forced


def test_a_model_without_probabilities_is_refused_with_the_reason(live, tmp_path):
    import requests

    live.edited = WithoutProbabilities()
    with served(live) as address:
        body = {"model": "the-cell", "prompt": [[1, 5, 6]], "max_tokens": 1, "logprobs": 1, "echo": True}
        refused = requests.post(address, json=body, timeout=60)
        assert refused.status_code == 400
        assert "without giving them probabilities" in refused.json()["error"]["message"]
        with pytest.raises(requests.HTTPError, match="400"):
            over_http(live, address, "the-cell", task(tmp_path, "arc_challenge"), tmp_path)
