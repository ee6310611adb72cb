"""The OpenAI-compatible server, over a real socket, against the model that it serves."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from rich.console import Console

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from harness.api import EditedModel  # noqa: E402
from harness.cli import main  # noqa: E402
from harness.errors import UserError  # noqa: E402
from harness.live.model import LiveModel  # noqa: E402
from harness.live.opening import open_cell  # noqa: E402
from harness.live.server import Completion, Server, application, listening  # noqa: E402
from harness.models.weights import weight_hash  # noqa: E402
from harness.run.progress import Display  # noqa: E402
from harness.store.store import Store  # noqa: E402
from harness.tokens import Query  # noqa: E402

PROMPT = "The mother tongue of Danielle Darrieux is"
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


class Client:
    def __init__(self, live, address):
        self.live, self.address = live, address

    def post(self, path, **body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()

    def complete(self, **body):
        return json.loads(self.post("/v1/completions", **body))["choices"]

    def refusal(self, **body):
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.post("/v1/completions", **body)
        assert refused.value.code == 400
        return json.loads(refused.value.read())["error"]["message"]


@pytest.fixture(scope="module", params=["ft-l", "grace", "onceedit"])
def client(doors, request):
    root, cells = doors
    live = open_cell(cells[request.param], Store(root), "cpu", Display(Console(quiet=True)))
    live.model.tokenizer.chat_template = TEMPLATE
    with listening("127.0.0.1", 0) as socket:
        config = uvicorn.Config(application(live, "the-cell"), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        yield Client(live, f"http://127.0.0.1:{socket.getsockname()[1]}")
        server.should_exit = True
        thread.join(10)


def test_both_models_are_listed_and_answer_as_they_do_here(client):
    with urllib.request.urlopen(f"{client.address}/v1/models", timeout=60) as response:
        assert [each["id"] for each in json.load(response)["data"]] == ["the-cell", "unedited"]
    prompts = [request.prompt for request in client.live.origin.requests[:3]]
    for name, side in (("the-cell", client.live.edited), ("unedited", client.live.unedited)):
        (choice,) = client.complete(model=name, prompt=prompts[0], max_tokens=5, temperature=0)
        assert choice["text"] == client.live.reply(side, prompts[0], 5, ()).text
        assert len(client.complete(model=name, prompt=prompts, max_tokens=5)) == 3


def test_a_stream_has_the_parts_of_the_answer(client):
    (whole,) = client.complete(prompt=PROMPT, max_tokens=6)
    events = client.post("/v1/completions", prompt=PROMPT, max_tokens=6, stream=True).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]
    assert "".join(chunk["text"] for chunk in chunks).strip() == whole["text"]
    assert [chunk["finish_reason"] for chunk in chunks][-1] == whole["finish_reason"]


class Paused(EditedModel):
    """A model that stops within a call, before its second id, until it is released."""

    def __init__(self, side):
        self.side, self.go_on, self.ids = side, threading.Event(), []

    def teacher_forced(self, queries):
        return self.side.teacher_forced(queries)

    def generate(self, queries):
        return self.side.generate(queries)

    def generate_until(self, queries, ends):
        def ends_later(row, id_):
            self.ids.append(id_)
            if len(self.ids) == 2:
                assert self.go_on.wait(30)
            return ends(row, id_)

        return self.side.generate_until(queries, ends_later)


@pytest.fixture
def paused(client):
    """The served model, its edited side paused in a stream whose first part has been read; a request to the unedited side."""
    live, prompt = client.live, client.live.origin.requests[0].prompt
    edited = Paused(live.edited)
    server = Server(LiveModel(live.model, edited, live.unedited, live.origin), "the-cell", 256)
    events = server.stream(Completion(model="the-cell", prompt=prompt, max_tokens=40, stream=True))
    asked = Completion(model="unedited", prompt=prompt, max_tokens=5)
    wanted, weights = server.complete(asked)["choices"], weight_hash(live.model.model)
    next(events)
    yield server, edited, events, asked, wanted
    assert weight_hash(live.model.model) == weights
    edited.go_on.set()
    events.close()


def test_a_dropped_stream_leaves_the_unedited_model_unedited_and_stops_decoding(paused):
    server, edited, events, asked, wanted = paused
    events.close()
    threading.Timer(0.3, edited.go_on.set).start()
    for _ in range(2):
        assert server.complete(asked)["choices"] == wanted
    assert len(edited.ids) < 10, "the rest of the answer is not computed"


def test_a_stream_that_nobody_reads_keeps_no_other_request_waiting(paused):
    server, edited, events, asked, _ = paused
    edited.go_on.set()
    other = threading.Thread(target=server.complete, args=[asked], daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()
    assert list(events)[-1] == "data: [DONE]\n\n"


def test_an_echoed_text_is_the_prompt_and_what_the_model_wrote_after_it(client):
    tokenizer = client.live.model.tokenizer
    ids = tokenizer(PROMPT)["input_ids"]
    for prompt in (PROMPT, ids):
        (choice,) = client.complete(prompt=prompt, max_tokens=3, echo=True, stop="\n")
        reply = client.live.reply(client.live.edited, PROMPT, 3, ())
        assert choice["text"] == tokenizer.decode([*ids, *reply.ids], skip_special_tokens=True)


def test_a_conversation_is_answered_by_the_chat_template(client):
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    choice = json.loads(client.post("/v1/chat/completions", **body))["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": client.live.reply(client.live.edited, f"{PROMPT} ", 4, ()).text,
    }
    assert "data: [DONE]" in client.post("/v1/chat/completions", **body, stream=True)


def test_echoed_logprobs_are_those_of_the_text(client):
    """What lm-eval's local-completions asks for: `echo`, one more token, token ids as prompts."""
    ids = client.live.model.tokenizer(PROMPT)["input_ids"]
    body = {"prompt": [ids, ids[:5]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    for choice, asked in zip(client.complete(**body), (ids, ids[:5]), strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(found["text_offset"]) == len(asked) + 1
        assert found["token_logprobs"][0] is None
        query = Query("", "", tuple(asked[:1]), tuple(asked[1:]))
        wanted = [score.logprob for score in client.live.score([query], reads_targets=True)[0]]
        assert found["token_logprobs"][1:-1] == pytest.approx(wanted, abs=1e-5)
        best = [max(top.values()) for top in found["top_logprobs"][1:]]
        assert all(top >= own for top, own in zip(best, found["token_logprobs"][1:], strict=True))
        assert found["token_logprobs"][-1] == best[-1], "the generated token is the most probable one"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"prompt": PROMPT, "model": "other"}, "no model 'other'"),
        ({"prompt": PROMPT, "temperature": 0.7}, "decodes greedily"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": PROMPT, "max_tokens": 0}, "nothing to return"),
        ({"prompt": [PROMPT, PROMPT], "stream": True}, "cannot be streamed together"),
        ({"prompt": "word " * 3000}, "positions"),
        ({"prompt": [5, 10**6]}, "token id 1000000, but tiny/llama has ids from 0 to"),
        ({"prompt": [[5], [-1]]}, "token id -1"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(client, body, complaint):
    message = client.refusal(**body)
    assert complaint in message
    assert "\n" not in message


def test_a_taken_port_is_found_before_a_model_is_loaded():
    with listening("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
        with pytest.raises(UserError) as refused, listening("127.0.0.1", port):
            pass
    assert refused.value.message == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert refused.value.fix.endswith(f"--port {port + 1}")


@pytest.mark.parametrize(
    ("host", "message"), [("192.0.2.1", "Cannot assign requested address"), ("no such host", "no such host:8000: Name")]
)
def test_another_port_is_suggested_only_where_it_helps(host, message):
    with pytest.raises(UserError, match=message) as refused, listening(host, 8000):
        pass
    assert refused.value.fix is None


def test_a_port_that_does_not_exist_is_one_line(capsys):
    assert main(["serve", "cell", "--port", "99999"]) == 2
    assert "65535" in capsys.readouterr().err
