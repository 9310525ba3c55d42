"""What the engine is asked: ids and pictures' tensors, never conversations. And what becomes of it."""

from collections.abc import Callable, Hashable
from dataclasses import astuple, dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from llava.engine.grammar import Constraint
from llava.engine.lookup import Lookup
from llava.engine.sampling import Held, Sampling
from llava.engine.text import TextStream
from llava.errors import LlavaError
from llava.media.tiling import Layout
from llava.models.cache import KVCache


@dataclass(frozen=True)
class RequestImage:
    """A picture or video of a request: its content's hash, where its placeholders are, and its views when asked for."""

    digest: str
    start: int
    layout: Layout
    views: Callable[[], Tensor]  # (layout.views, 3, size, size)

    @property
    def end(self) -> int:
        """The first position behind its placeholders."""
        return self.start + self.layout.num_tokens


@dataclass(frozen=True)
class Request:
    """Ids with placeholders, a key for each (equal keys mean equal inputs), the pictures, and what ends the answer.

    stop_ids: ids. stop: strings; the answer's text ends before the first that it holds. variant: of the model, where
    it has several (llava.engine.variants). continues: the answer goes on with the prompt's text, so that what leads it
    is not stripped.
    """

    ids: list[int]
    keys: list[Hashable]
    images: list[RequestImage]
    stop_ids: frozenset[int]
    stop: tuple[str, ...] = ()
    variant: str = ""
    continues: bool = False

    def of(self, variant: str) -> "Request":
        """The same to a variant of the model, which shares no keys, values and tokens of pictures with others."""
        keys = [(variant, key) if place == 0 else key for place, key in enumerate(self.keys)]
        images = [replace(image, digest=f"{variant}:{image.digest}") for image in self.images]
        return replace(self, keys=keys, images=images, variant=variant)


@dataclass(frozen=True)
class Usage:
    """What requests took, and what of it came from which cache.

    reused_tokens: of the prompts, whose keys and values were there. encoded_images, reused_images: pictures beyond
    those, that were encoded, and whose tokens were there. guessed_tokens: of the answers, found by lookup.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    reused_tokens: int = 0
    encoded_images: int = 0
    reused_images: int = 0
    guessed_tokens: int = 0
    preemptions: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Scored:
    """A token's log probability under the model, before any sampling, and those of the likeliest tokens."""

    logprob: float
    top: list[tuple[int, float]]


Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(eq=False)
class Generation:
    """A request on its way: what was generated so far, and how it ended. Only the engine changes it."""

    request: Request
    sampling: Sampling
    limit: int  # tokens at most
    source: torch.Generator
    stream: TextStream
    output: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)  # one for each of the output, where sampling.logprobs asks
    finished: Finish | None = None
    error: LlavaError | None = None
    usage: Usage = Usage()
    text: str = ""  # of the output: whole characters that no stop string can take back
    constraint: Constraint | None = None
    lookup: Lookup | None = None
    encoded: set[str] = field(default_factory=set)  # pictures that were encoded for it, and it has not seen yet
    turn: int = 0  # in which it is admitted
    held: Held | None = None  # where the sampling penalises
    guess: list[int] = field(default_factory=list)  # at what follows, to be run with the last token
    cache: KVCache | None = None  # while it runs
    blocks: int = 0  # of the pool that its cache has
    order: int = 0  # of its last admission

    @property
    def length(self) -> int:
        """Tokens of the prompt and the output."""
        return len(self.request.ids) + len(self.output)

    @property
    def filled(self) -> int:
        """Tokens whose keys and values are stored."""
        return 0 if self.cache is None else self.cache.length

    def keys(self, end: int) -> list[Hashable]:
        """The keys of the first `end` tokens."""
        return [*self.request.keys, *self.output][:end]

    def tokens(self, start: int, end: int) -> list[int]:
        """Some tokens of prompt, output and guess."""
        prompt, length = len(self.request.ids), self.length
        found = [*self.request.ids[start:end], *self.output[max(0, start - prompt) : max(0, end - prompt)]]
        return [*found, *self.guess[max(0, start - length) : max(0, end - length)]]


def seen(one: Generation, start: int, end: int) -> list[RequestImage]:
    """The pictures whose placeholders are in start..end of a request's tokens."""
    return [image for image in one.request.images if image.start < end and image.end > start]
