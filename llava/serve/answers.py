"""One request to the engine and what comes of it, as OpenAI's API says it: whole, or chunk by chunk."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava.engine.background import BackgroundEngine, Delta
from llava.engine.request import Finish, Request, Scored, Usage
from llava.engine.sampling import Sampling
from llava.serve.metrics import Metrics
from llava.serve.tools import Call, ToolText
from llava.tokenizer import Tokenizer

JSON = dict[str, Any]


@dataclass
class Choice:
    """One of a request's answers as it comes. tools: where it may hold calls of functions. echo: stands before it."""

    tools: ToolText | None = None
    echo: str = ""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    finish: Finish | None = None
    last: float | None = None  # when its last token came

    def take(self, delta: Delta) -> str:
        """Add what is new; return the text to show."""
        shown = delta.text
        if self.tools is not None:
            shown = self.tools.push(shown) + (self.tools.finish() if delta.finish else "")
        self.text += shown
        self.ids += delta.ids
        self.scored += delta.scored
        self.usage, self.finish = delta.usage, delta.finish
        return shown

    @property
    def calls(self) -> list[Call]:
        """The functions that it calls, so far."""
        return [] if self.tools is None else self.tools.calls

    @property
    def reason(self) -> str | None:
        """Why it ended, once it has."""
        return "tool_calls" if self.finish == "stop" and self.calls else self.finish


async def follow(
    name: str,
    engine: BackgroundEngine,
    requests: Sequence[tuple[Request, Sampling]],
    choices: list[Choice],
    metrics: Metrics,
) -> AsyncGenerator[tuple[int, Delta, str], None]:
    """The deltas of a model's answers with the text to show of each; the choices are kept up to date, and measured."""
    start, firsts = time.monotonic(), [0.0] * len(choices)
    between = metrics.between.labels(name)  # looked up once: it is used for each token
    deltas = engine.stream(requests)
    try:
        async for index, delta in deltas:
            choice, now = choices[index], time.monotonic()
            if delta.ids:
                if choice.last is None:
                    firsts[index] = now
                    metrics.first.labels(name).observe(now - start)
                else:
                    between.observe((now - choice.last) / len(delta.ids))
                choice.last = now
            shown = choice.take(delta)
            if delta.finish and choice.last is not None and choice.last > firsts[index]:
                metrics.speed.labels(name).observe((len(choice.ids) - 1) / (choice.last - firsts[index]))
            yield index, delta, shown
    finally:
        await deltas.aclose()
        for choice in choices:
            metrics.took(name, choice.usage)
        if any(choice.finish is None for choice in choices):
            metrics.cancelled.inc()


def usage_body(choices: Sequence[Choice], prompts: Sequence[int], images: int) -> JSON:
    """What a request took. prompts: the tokens of each of its prompts; images: those of them that are pictures'."""
    answer, prompt = sum(len(choice.ids) for choice in choices), sum(prompts)
    first = [choices[i].usage for i in range(0, len(choices), len(choices) // len(prompts))]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.reused_tokens for usage in first),
            "image_tokens": images,
            "images_encoded": sum(choice.usage.encoded_images for choice in choices),
            "images_cached": sum(choice.usage.reused_images for choice in choices),
        },
    }


def chat_logprobs(tokenizer: Tokenizer, ids: Sequence[int], scored: Sequence[Scored]) -> JSON:
    """Tokens with their log probabilities, as chat completions show them."""

    def entry(token: int, logprob: float) -> JSON:
        data = tokenizer.bytes_of(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        entry(token, score.logprob) | {"top_logprobs": [entry(*pair) for pair in score.top]}
        for token, score in zip(ids, scored, strict=True)
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, ids: Sequence[int], scored: Sequence[Scored], start: int) -> JSON:
    """The same as completions show them; start: the characters before the first."""
    data, offsets = [tokenizer.bytes_of(token) for token in ids], []
    for piece in data:
        offsets.append(start)
        start += len(piece.decode("utf-8", "replace"))
    names = [_name(piece) for piece in data]
    tops: list[JSON] = []
    for score in scored:
        top: JSON = {}
        for token, value in score.top:  # of tokens of one name the likeliest, which comes first
            top.setdefault(_name(tokenizer.bytes_of(token)), _finite(value))
        tops.append(top)
    values = [_finite(score.logprob) for score in scored]
    return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _name(data: bytes) -> str:
    """A token in a list of texts: parts of characters by their bytes, as OpenAI shows them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


_to_json = json.JSONEncoder(separators=(",", ":")).encode


def event(body: JSON) -> bytes:
    """A server-sent event."""
    return b"data: " + _to_json(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def _finite(value: float) -> float:
    return max(value, -9999.0)  # JSON has no infinity; OpenAI's own floor
