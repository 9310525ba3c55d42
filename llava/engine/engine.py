"""The engine: requests of ids in, ids out. It knows tokens and pictures' tensors, not conversations.

It keeps the keys and values of the last request: where the next one begins with the same tokens and pictures, they are
not computed again. It also keeps the tokens of pictures that it has encoded.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.engine.sampling import Sampling, choose
from llava.errors import LlavaError
from llava.media.tiling import Layout
from llava.models.cache import KVCache
from llava.models.llava import LlavaModel

_KEPT_IMAGES = 64  # pictures whose tokens are kept


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
    """Ids with placeholders, a key for each (equal keys mean equal inputs), the pictures, and the ids that end it."""

    ids: list[int]
    keys: list[Hashable]
    images: list[RequestImage]
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class Usage:
    """What a request took. reused_tokens: of the prompt, found in the cache. encoded_images: not found in it."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    encoded_images: int = 0


class Engine:
    """Runs one model. Not for use by several threads at once."""

    def __init__(self, model: LlavaModel) -> None:
        self._model = model
        self._images: OrderedDict[str, Tensor] = OrderedDict()
        self._encoded = 0
        self._keys: list[Hashable] = []  # what the cache's row holds
        self._cache = KVCache(model.config.llm, 1, model.device, torch.float32)
        self.usage = Usage()  # of the last request, or the last batch

    def stream(self, request: Request, sampling: Sampling) -> Iterator[int]:
        """Generate one token after another, up to a stop id (not included), max_new_tokens or the end of the context.

        Raises LlavaError when the prompt is longer than the model's context.
        """
        length = len(request.ids)
        self._check_length(length)
        start = min(_common([self._keys, request.keys]), length - 1)  # the last token must run: its scores are needed
        logits = self._fill(request, start, length)
        self.usage = Usage(length, start, self._encoded)
        generator = sampling.generator()
        token = 0  # chosen in the first round
        for count in range(min(sampling.max_new_tokens, self._max_positions - length + 1)):
            if count > 0:
                position = torch.tensor([length + count - 1], device=self._model.device)
                logits = self._logits(self._run(torch.tensor([[token]]), [], self._cache, position)[:, -1])
                self._keys.append(token)
            token = choose(logits[0], sampling, generator)
            if token in request.stop_ids:
                return
            yield token

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[int]]:
        """Generate for several requests together. What their prompts begin with in common is computed once.

        In float32 the answers are those of `stream`: rows do not influence each other.
        Raises LlavaError when a prompt is longer than the model's context.
        """
        if not requests:
            return []
        lengths = [len(request.ids) for request in requests]
        self._check_length(max(lengths))
        shared = min(_common([request.keys for request in requests]), min(lengths) - 1)
        start = min(_common([self._keys, requests[0].keys]), shared)
        self._fill(requests[0], start, shared)
        cache = self._cache.expand(len(requests), shared)
        encoded = self._encoded
        logits = self._fill_rows(requests, shared, cache)  # (B, V)
        self.usage = Usage(sum(lengths), shared * (len(requests) - 1) + start, encoded + self._encoded)
        sources = [sampling.generator() for _ in requests]
        answers: list[list[int]] = [[] for _ in requests]
        active = set(range(len(requests)))
        for count in range(min(sampling.max_new_tokens, self._max_positions - max(lengths) + 1)):
            if count > 0:
                tokens = torch.tensor([[answer[-1] if answer else 0] for answer in answers])
                positions = torch.tensor([[length + count - 1] for length in lengths], device=self._model.device)
                logits = self._logits(self._run(tokens, [], cache, positions)[:, -1])
            for row in sorted(active):
                token = choose(logits[row], sampling, sources[row])
                if token in requests[row].stop_ids:
                    active.remove(row)
                else:
                    answers[row].append(token)
            if not active:
                break
        return answers

    @property
    def _max_positions(self) -> int:
        return self._model.config.llm.max_positions

    def _check_length(self, length: int) -> None:
        if length > self._max_positions:
            raise LlavaError(
                f"the prompt takes {length} tokens, the model's context holds {self._max_positions}; "
                "start a new conversation or use fewer images"
            )

    def _fill(self, request: Request, start: int, end: int) -> Tensor:
        """Make the kept row hold the prompt up to `end`, when it holds it up to `start`. Scores (1, V) after `end`."""
        del self._keys[start:]  # first: an interruption must not leave keys that the cache does not hold
        self._encoded = 0
        if start == end:
            return torch.empty(0)
        positions = torch.arange(start, end, device=self._model.device)
        hidden = self._run(
            torch.tensor([request.ids[start:end]]), self._visible(request, start, end), self._cache, positions
        )
        self._keys = request.keys[:end]
        return self._logits(hidden[:, -1])

    def _fill_rows(self, requests: Sequence[Request], start: int, cache: KVCache) -> Tensor:
        """Run each prompt from `start` on, padded on the right. Scores (B, V) after each."""
        self._encoded = 0
        ids = pad_sequence([torch.tensor(request.ids[start:]) for request in requests], batch_first=True)
        images = [tokens for request in requests for tokens in self._visible(request, start, len(request.ids))]
        positions = torch.arange(start, start + ids.shape[1], device=self._model.device)
        hidden = self._run(ids, images, cache, positions)
        last = torch.tensor([len(request.ids) - start - 1 for request in requests])
        return self._logits(hidden[torch.arange(len(requests)), last])

    @torch.inference_mode()
    def _run(self, ids: Tensor, images: list[Tensor], cache: KVCache, positions: Tensor) -> Tensor:
        device = self._model.device
        width = self._model.config.llm.hidden_size
        tokens = torch.cat(images) if images else torch.empty(0, width, device=device)
        return self._model(ids.to(device), tokens, cache, positions)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _logits(self, hidden: Tensor) -> Tensor:
        return self._model.llm.logits(hidden)

    def _visible(self, request: Request, start: int, end: int) -> list[Tensor]:
        """The image tokens, in order, whose placeholders are in start..end of the prompt."""
        return [
            self._image_tokens(image)[max(0, start - image.start) : end - image.start]
            for image in request.images
            if image.start < end and image.end > start
        ]

    @torch.inference_mode()
    def _image_tokens(self, image: RequestImage) -> Tensor:
        """A picture's tokens (T, D), from the cache or encoded now."""
        if image.digest not in self._images:
            self._images[image.digest] = self._model.encode(image.views().to(self._model.device), [image.layout])
            self._encoded += 1
            if len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        self._images.move_to_end(image.digest)
        return self._images[image.digest]


def _common(sequences: Sequence[Sequence[Hashable]]) -> int:
    """The length of the prefix that all sequences share."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        length += 1
    return length
