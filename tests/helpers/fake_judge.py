"""A judge behind a real socket that replies like an OpenAI-compatible interface, or as badly as a test wants."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str], str | tuple[int, str]]
"""From the prompt to the reply, or to a status and the body of the response."""


class FakeJudge:
    """What is known about the server.

    Attributes:
        reply: may be replaced at any time.
        asked: bodies of all requests.
        headers: headers of the last request.
    """

    def __init__(self) -> None:
        self.reply: Reply = agrees_if_contained
        self.asked: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = ""


def texts_of(prompt: str) -> tuple[str, str, str]:
    """Question, reference and answer in a judge's prompt."""
    found = [json.loads(line) for line in re.findall(r'^[\w ]+: (".*")$', prompt, re.MULTILINE)]
    question, reference, answer = found
    return question, reference, answer


def agrees_if_contained(prompt: str) -> str:
    """A judge for whom an answer is correct if it contains the reference."""
    _, reference, answer = texts_of(prompt)
    return "CORRECT" if reference in answer else "INCORRECT"


@contextlib.contextmanager
def fake_judge() -> Iterator[FakeJudge]:
    """A server on a free port while the block runs."""
    judge = FakeJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.asked.append(body)
            judge.headers = dict(self.headers)
            made = judge.reply(body["messages"][0]["content"]) if self.path == "/v1/chat/completions" else (404, "{}")
            answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": made}}]}
            status, text = made if isinstance(made, tuple) else (200, json.dumps(answer))
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
