"""Serve an edited model with an OpenAI-compatible API: `/v1/completions`, `/v1/chat/completions` and `/v1/models`.

Decoding is greedy, one request after the other. Two models are served: the edited one under its cell's name, and `unedited`.
With `echo`, a request does not say where its prompt ends, so routing decisions read the whole text.
"""

import contextlib
import errno
import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from harness.api import EditedModel, TokenScore
from harness.commands import same_command
from harness.errors import UserError
from harness.live.model import LiveModel
from harness.live.text import Reply, replied
from harness.models.batching import length_sorted
from harness.tokens import Query, chat_text, open_query

UNEDITED = "unedited"
BATCH = 16
"""Maximum number of prompts of one request that are batched."""


class _Asked(BaseModel):
    """What both kinds of requests have in common. Other fields are ignored if they do not change a greedy answer."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    stop: str | list[str] | None = None
    stream: bool = False

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Completion(_Asked):
    """Body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0)


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(_Asked):
    """Body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)


class Server:
    """Answers requests, one at a time."""

    def __init__(self, live: LiveModel, name: str, max_tokens: int) -> None:
        self._live, self._max_tokens, self._lock = live, max_tokens, threading.Lock()
        self.sides: dict[str, EditedModel] = {name: live.edited}
        if live.unedited is not None:
            self.sides[UNEDITED] = live.unedited
        self.name = name

    def complete(self, asked: Completion) -> dict[str, Any]:
        """The answer to a completion request.

        Raises:
            UserError: for what this server cannot do.
        """
        side, queries = self._side(asked), self._queries(asked)
        with self._lock:
            replies = self._replies(side, queries, asked.stops)
            scores = (
                self._scores(side, asked, queries, replies) if asked.logprobs is not None else [None] * len(queries)
            )
        choices = [
            {
                "index": index,
                "text": query.prompt + reply.continuation if asked.echo else reply.text,
                "finish_reason": reply.finish,
                "logprobs": found,
            }
            for index, (query, reply, found) in enumerate(zip(queries, replies, scores, strict=True))
        ]
        return self._response(asked, "text_completion", choices, replies)

    def chat(self, asked: Chat) -> dict[str, Any]:
        """The answer to a conversation.

        Raises:
            UserError: as `complete`, or if there is no chat template.
        """
        side, query = self._side(asked), self._conversation(asked)
        with self._lock:
            (reply,) = self._replies(side, [query], asked.stops)
        message = {"role": "assistant", "content": reply.text}
        choices = [{"index": 0, "message": message, "finish_reason": reply.finish, "logprobs": None}]
        return self._response(asked, "chat.completion", choices, [reply])

    def stream(self, asked: Completion | Chat) -> Iterator[str]:
        """The answer as server-sent events, one for each part as it is written; closing the iterator stops the model.

        Raises:
            UserError: as `complete`; before the first event.
        """
        is_chat = isinstance(asked, Chat)
        query = self._conversation(asked) if isinstance(asked, Chat) else self._only(asked)
        side = self._side(asked)
        kind = "chat.completion.chunk" if is_chat else "text_completion"

        def event(part: str | None, finish: str | None) -> str:
            if is_chat:
                choice: dict[str, Any] = {"index": 0, "delta": {} if part is None else {"content": part}}
            else:
                choice = {"index": 0, "text": part or "", "logprobs": None}
            body = self._envelope(asked, kind) | {"choices": [{**choice, "finish_reason": finish}]}
            return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

        def work(write: Callable[[str], None]) -> Reply:
            with self._lock:
                return replied(side, self._live.model, [query], asked.stops, write)[0]

        def events() -> Iterator[str]:
            for part in _followed(work):
                yield event(part, None) if isinstance(part, str) else event(None, part.finish)
            yield "data: [DONE]\n\n"

        return events()

    def _side(self, asked: _Asked) -> EditedModel:
        if asked.temperature or asked.n != 1:
            raise UserError("this server decodes greedily: one answer at temperature 0", fix='"temperature": 0, "n": 1')
        name = asked.model or self.name
        if name not in self.sides:
            raise UserError(f"no model '{name}'", fix=f"one of: {', '.join(self.sides)}")
        return self.sides[name]

    def _queries(self, asked: Completion) -> list[Query]:
        tokenizer, given = self._live.model.tokenizer, asked.prompt
        prompts: Sequence[Any] = given if isinstance(given, list) and not _is_ids(given) else [given]
        if not prompts or not all(prompts):
            raise UserError("the prompt is empty", fix="a prompt with at least one word")
        limit = max(self._max_tokens if asked.max_tokens is None else asked.max_tokens, 1)
        queries = []
        for prompt in prompts:
            if isinstance(prompt, str):
                queries.append(open_query(tokenizer, prompt, limit))
            else:
                text = tokenizer.decode(self._known(prompt), skip_special_tokens=True)
                queries.append(Query(text, "", tuple(prompt), (0,) * limit))
        if asked.max_tokens == 0:
            if not asked.echo:
                raise UserError("nothing to return: max_tokens is 0 without echo", fix='"max_tokens": 16')
            return [Query(query.prompt, "", query.prompt_ids, ()) for query in queries]
        return queries

    def _known(self, ids: list[int]) -> list[int]:
        """Ids that the model has embeddings for; another one would break the context of a GPU for all later requests."""
        rows = self._live.model.embeddings.get_parameter("weight").shape[0]
        if unknown := [id_ for id_ in ids if not 0 <= id_ < rows]:
            raise UserError(
                f"the prompt contains the token id {unknown[0]}, but {self._live.model.ref.name} has ids from 0 to {rows - 1:,}",
                fix="ids of the model's own tokenizer",
            )
        return ids

    def _only(self, asked: Completion) -> Query:
        if asked.echo or asked.logprobs is not None:
            raise UserError("echo and logprobs are not streamed", fix='"stream": false')
        queries = self._queries(asked)
        if len(queries) != 1:
            raise UserError(f"{len(queries)} prompts cannot be streamed together", fix="one prompt per request")
        return queries[0]

    def _conversation(self, asked: Chat) -> Query:
        tokenizer = self._live.model.tokenizer
        try:
            text = chat_text(tokenizer, [message.model_dump() for message in asked.messages])
        except ValueError as error:
            raise UserError(str(error), fix="/v1/completions") from None
        limit = asked.max_completion_tokens or asked.max_tokens or self._max_tokens
        return open_query(tokenizer, text, limit)

    def _replies(self, side: EditedModel, queries: Sequence[Query], stops: Sequence[str]) -> list[Reply]:
        if not queries[0].target_ids:
            return [Reply("", (), "length", len(query.prompt_ids)) for query in queries]
        replies: dict[int, Reply] = {}
        for batch in length_sorted(queries, lambda query: len(query.prompt_ids), BATCH):
            found = replied(side, self._live.model, [queries[index] for index in batch], stops)
            replies.update(zip(batch, found, strict=True))
        return [replies[index] for index in range(len(queries))]

    def _scores(
        self, side: EditedModel, asked: Completion, queries: Sequence[Query], replies: Sequence[Reply]
    ) -> list[dict[str, Any] | None]:
        """Log-probabilities of the answers and, with `echo`, of the prompts."""
        scored = [
            Query(query.prompt, "", query.prompt_ids[:1], query.prompt_ids[1:] + reply.ids)
            if asked.echo
            else Query(query.prompt, "", query.prompt_ids, reply.ids)
            for query, reply in zip(queries, replies, strict=True)
        ]
        found: dict[int, list[TokenScore]] = {index: [] for index, query in enumerate(scored) if not query.target_ids}
        there = [index for index, query in enumerate(scored) if query.target_ids]
        for batch in length_sorted([scored[index] for index in there], lambda query: len(query.prompt_ids), BATCH):
            places = [there[index] for index in batch]
            made = side.score([scored[place] for place in places], reads_targets=asked.echo)
            found.update(zip(places, made, strict=True))
        return [self._logprobs(query, found[index], asked.echo) for index, query in enumerate(scored)]

    def _logprobs(self, query: Query, scores: Sequence[TokenScore], echo: bool) -> dict[str, Any]:
        tokenizer = self._live.model.tokenizer
        ids = [*query.prompt_ids, *query.target_ids] if echo else list(query.target_ids)
        lengths = [len(tokenizer.decode(ids[:end], skip_special_tokens=True)) for end in range(len(ids))]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        leading = tokenizer.convert_ids_to_tokens([score.best for score in scores])
        first: list[None] = [None] if echo else []
        top = [
            {best: score.best_logprob, piece: score.logprob}
            for best, piece, score in zip(leading, pieces[len(first) :], scores, strict=True)
        ]
        return {
            "tokens": pieces,
            "token_logprobs": [*first, *(score.logprob for score in scores)],
            "top_logprobs": [*first, *top],
            "text_offset": lengths,
        }

    def _envelope(self, asked: _Asked, kind: str) -> dict[str, Any]:
        return {
            "id": f"harness-{uuid.uuid4().hex[:12]}",
            "object": kind,
            "created": int(time.time()),
            "model": asked.model or self.name,
        }

    def _response(
        self, asked: _Asked, kind: str, choices: list[dict[str, Any]], replies: Sequence[Reply]
    ) -> dict[str, Any]:
        read, written = sum(reply.prompt_ids for reply in replies), sum(len(reply.ids) for reply in replies)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return self._envelope(asked, kind) | {"choices": choices, "usage": usage}


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on an address, so that a port in use is noticed before a model is loaded.

    Raises:
        UserError: if the address cannot be had.
    """
    try:
        taken = socket.create_server((host, port))
    except OSError as error:
        is_other_port_better = error.errno in (errno.EADDRINUSE, errno.EACCES)
        other = port + 1 if 1024 <= port < 65535 else 8000
        raise UserError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).partition(' (while')[0]}",
            fix=same_command(port=other) if is_other_port_better else None,
        ) from None
    with taken:
        yield taken


def application(live: LiveModel, name: str, max_tokens: int = 256) -> FastAPI:
    """The web application.

    Args:
        live: the edited model.
        name: under which it is served.
        max_tokens: longest answer of a request that does not say.
    """
    server, app = Server(live, name, max_tokens), FastAPI(title="editing-harness", docs_url=None, redoc_url=None)

    @app.exception_handler(UserError)
    def refuse(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        known = [{"id": each, "object": "model", "created": 0, "owned_by": "editing-harness"} for each in server.sides]
        return {"object": "list", "data": known}

    @app.post("/v1/completions", response_model=None)
    def completions(asked: Completion) -> dict[str, Any] | StreamingResponse:
        return _events(server.stream(asked)) if asked.stream else server.complete(asked)

    @app.post("/v1/chat/completions", response_model=None)
    def chat(asked: Chat) -> dict[str, Any] | StreamingResponse:
        return _events(server.stream(asked)) if asked.stream else server.chat(asked)

    return app


def _events(events: Iterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream")


def _is_ids(prompt: Sequence[Any]) -> bool:
    return bool(prompt) and all(isinstance(each, int) for each in prompt)


class _AbandonedError(Exception):
    """Nobody reads the answer any more."""


def _followed(work: Callable[[Callable[[str], None]], Reply]) -> Iterator[str | Reply]:
    """Yield the parts that `work` writes while it runs in a thread of its own, then its result; its error is raised here.

    The thread takes the model's lock in `work`, not the reader here, who may be slow or gone while the model is still decoding
    with its edits in place. When the iterator is closed, the next part that `work` writes ends it.
    """
    parts: queue.SimpleQueue[str | Reply | Exception] = queue.SimpleQueue()
    is_abandoned = threading.Event()

    def write(part: str) -> None:
        if is_abandoned.is_set():
            raise _AbandonedError
        parts.put(part)

    def run() -> None:
        try:
            parts.put(work(write))
        except Exception as error:
            parts.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while isinstance(part := parts.get(), str):
            yield part
        if isinstance(part, Exception):
            raise part
        yield part
    finally:
        is_abandoned.set()
