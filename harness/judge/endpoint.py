"""Client for the chat completions of an OpenAI-compatible API, using only the standard library."""

import json
import os
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from harness.errors import UserError
from harness.identity import digest
from harness.suite.schema import JudgeForm

WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts at one request."""

MAX_TOKENS = 16
"""Longest reply; a verdict is one word."""

_PASSING = {408, 409, 425, 429}
"""HTTP errors that may be temporary, in addition to the server's own (5xx)."""


class EndpointError(UserError):
    """The API does not answer, or not as expected."""


class Endpoint:
    """A judge that several threads ask questions."""

    def __init__(self, form: JudgeForm) -> None:
        """Read the key from the environment.

        Raises:
            UserError: if its variable is not set.
        """
        self._form, self._url, self._stopped = form, f"{form.url}/chat/completions", threading.Event()
        self._key = os.environ.get(form.api_key_env or "", "").strip()
        if form.api_key_env and not (self._key and self._key.isascii() and self._key.isprintable()):
            is_there = "holds no key" if self._key else "is not set"
            raise UserError(
                f"judge: the environment variable {form.api_key_env} {is_there}", fix=f"export {form.api_key_env}=KEY"
            )
        self._opener = urllib.request.build_opener(_NoRedirect)

    def key(self, prompt: str) -> str:
        """Hash of everything that decides a reply: the judge (see `JudgeForm.title`), its settings and the prompt."""
        return digest({"judge": self._form.title, **self._body(prompt)})

    def stop(self) -> None:
        """Let requests that wait for another attempt fail immediately."""
        self._stopped.set()
        self._stopped = threading.Event()

    def ask(self, prompt: str) -> str:
        """The reply to a prompt.

        Raises:
            EndpointError: if there is none after several attempts, or at once for what will not pass, such as a wrong key.
        """
        stopped = self._stopped
        for wait_s in (*WAITS_S, None):
            try:
                return self._reply(prompt)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {self._message(error)}".strip()
                if error.code < 500 and error.code not in _PASSING:
                    raise EndpointError(f"judge at {self._url}: {problem}", fix=self._remedy(error.code)) from None
            except urllib.error.URLError as error:
                problem = str(getattr(error.reason, "strerror", None) or error.reason).lower()
            except (OSError, HTTPException) as error:  # the connection broke, or took too long
                problem = str(error) or type(error).__name__
            if wait_s is None or stopped.wait(wait_s):
                break
        raise EndpointError(
            f"judge at {self._url}: {self._hidden(problem)} (attempts: {len(WAITS_S) + 1})",
            fix=f"curl {self._form.url}/models",
        )

    def _body(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self._form.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }

    def _reply(self, prompt: str) -> str:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = urllib.request.Request(self._url, json.dumps(self._body(prompt)).encode(), headers)
        with self._opener.open(request, timeout=self._form.timeout_s) as response:
            content = response.read().decode("utf-8", errors="replace")
        try:
            reply = json.loads(content)["choices"][0]["message"]["content"]
            if not isinstance(reply, str | None):
                raise TypeError("content of another kind than text")
        except (ValueError, KeyError, IndexError, TypeError):
            shown = self._hidden(" ".join(content.split())[:80])
            raise EndpointError(
                f"judge at {self._url}: not the answer of an OpenAI-compatible interface: '{shown}'",
                fix="judge: {url: …} up to `/v1`, such as http://127.0.0.1:8000/v1",
            ) from None
        return reply or ""  # null, if a model has only thought

    def _message(self, error: urllib.error.HTTPError) -> str:
        """What the server says about an error, on one line."""
        text = error.read().decode("utf-8", errors="replace")
        try:
            found = json.loads(text)
            text = str(found["error"]["message"] if isinstance(found.get("error"), dict) else found.get("detail", text))
        except (ValueError, KeyError, AttributeError):
            text = "" if text.lstrip().startswith("<") else text
        return self._hidden(" ".join(text.split())[:200])

    def _hidden(self, text: str) -> str:
        """A text in which the key cannot be read; some servers repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def _remedy(self, code: int) -> str:
        if code in (401, 403):
            variable = self._form.api_key_env
            return f"export {variable}=KEY" if variable else "judge: {…, api_key_env: NAME} and export NAME=KEY"
        return f"judge: {{url: …, model: …}} as in: curl {self._form.url}/models"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address must not get the key, and a request would lose its content on the way."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
