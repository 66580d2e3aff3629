"""A server with vLLM's completions as a teacher: it is asked for the likeliest tokens at every place of a prompt.

POST URL/v1/completions with `prompt` (ids), `max_tokens` 1 and `prompt_logprobs` K; each answer has, for every token of
the prompt, the K likeliest in its place and the token itself. Standard library only; nothing is sent but token ids.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from distill.errors import SignalError
from distill.system.files import loads
from distill.teacher.imported.dialects import Reading, rows_of
from distill.teacher.imported.rows import BadRow, Row, check

AT_ONCE = 8  # requests in flight
ATTEMPTS = 6  # of a request, over about a minute
TIMEOUT = 600.0  # seconds for one answer
_LARGEST = 1 << 30  # bytes of an answer
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}


class Server:
    """One model of a server. `address` is the URL, with or without /v1, and '#NAME' behind it where it has several."""

    def __init__(self, address: str, top_k: int, vocab_size: int, sleep: Callable[[float], None] = time.sleep):
        """Raises SignalError where the server does not answer, or has several models and the address names none."""
        url, _, name = address.partition("#")
        self.url, self._top_k, self._vocab_size, self._sleep = (
            url.rstrip("/").removesuffix("/v1"),
            top_k,
            vocab_size,
            sleep,
        )
        if not self.url.startswith(("http://", "https://")):
            raise SignalError(f"config.teacher.server={address}: wanted a URL, such as http://localhost:8000")
        listed = self._ask("/v1/models", None).get("data")
        models = (
            [str(model.get("id")) for model in listed if isinstance(model, dict)] if isinstance(listed, list) else []
        )
        if not models or name and name not in models or not name and len(models) > 1:
            raise SignalError(
                f"config.teacher.server={address}: the server has the models {', '.join(models) or '(none)'}; name one "
                f"as {url}#MODEL"
            )
        self.model = name or models[0]

    def score(self, prompts: Sequence[Sequence[int]]) -> list[Row]:
        """The rows of these prompts, of at least two tokens each, in their order; some requests run at once.

        Raises SignalError where an answer is none, or the server gives up.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._score, prompts))

    def _score(self, prompt: Sequence[int]) -> Row:
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self._top_k,
        }
        answer = self._ask("/v1/completions", body)
        try:
            choices = answer.get("choices")
            if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
                raise BadRow("choices are not one object")
            if choices[0].get("prompt_logprobs") is None:
                raise BadRow("there are no prompt_logprobs; it has to be vLLM's server, or one that answers like it")
            (row,) = rows_of({**choices[0], "prompt_token_ids": list(prompt)}, Reading())
            check(row, self._vocab_size)
        except BadRow as error:
            raise SignalError(f"{self.url}: an answer is of no use: {error}") from None
        if ((row.top_ids[1:] >= 0).sum(axis=1) < min(self._top_k, self._vocab_size)).any():
            raise SignalError(f"{self.url}: an answer has fewer than {self._top_k} tokens at some place; ask for fewer")
        if not (row.own[1:] <= 0.01).all():
            raise SignalError(
                f"{self.url}: an answer lacks the prompt's own tokens, so the server read other tokens than were sent"
            )
        return row

    def _ask(self, path: str, body: dict[str, object] | None) -> dict[str, object]:
        """The object that the server answers, after a few attempts. Raises SignalError with its own words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(2.0**attempt)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    answer = loads(response.read(_LARGEST))
                if not isinstance(answer, dict):
                    raise ValueError(f"got {type(answer).__name__}, wanted an object")
                return answer
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {_words(error)}"
                if error.code not in _BUSY:
                    more = "; start vLLM with --max-logprobs of at least --top_k" if "logprobs" in reason else ""
                    raise SignalError(f"{self.url}{path}: the server refuses: {reason}{more}") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
        raise SignalError(
            f"{self.url}{path}: no answer after {ATTEMPTS} attempts ({reason:.200}); start the server, and run the "
            "same command again: it continues where it stopped"
        )


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says about an error, on one line."""
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    except (OSError, http.client.HTTPException):
        return error.reason
