"""Pictures' tokens: encoded once, a few views a step, and kept for whoever shows the same picture.

A picture of many views, or a video, takes several steps beside requests that could go on without it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from llava.engine.request import Generation, RequestImage, seen
from llava.engine.scheduler import Scheduler
from llava.engine.variants import Variants
from llava.errors import EngineError, LlavaError
from llava.models.llava import LlavaModel
from llava.quantization.linears import rounds_inputs

Plan = list[tuple[Generation, int]]  # requests, and how many tokens of each

_BYTES = 256 * 2**20  # of pictures' tokens that are kept
_VIEWS = 16  # of pictures that are encoded at once on a GPU
_PIXELS = 4 * 224**2  # of the views that are encoded at once on a CPU: what its caches hold (docs/engine.md)
_GROUPS = 8  # of views that a step encodes, where nothing waits for it


@dataclass
class _Picture:
    """A picture that is being encoded: all its views, for whom, and the features of the first views."""

    image: RequestImage
    variant: str
    views: Tensor
    asked_by: Generation
    features: list[Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many views are still to be encoded."""
        return len(self.views) - sum(len(part) for part in self.features)


class Pictures:
    """The tokens of pictures, by digest. Least recently used ones are forgotten where they take too much memory.

    at_once: views that are encoded together; one, where layers round their inputs: an encoder may add in another order
    for another number of views, and from the last digit of a feature could come another level.
    """

    def __init__(self, model: LlavaModel, scheduler: Scheduler, variants: Variants | None) -> None:
        self._model, self._scheduler, self._variants = model, scheduler, variants
        self.tokens: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = 0  # that they take
        self.begun: dict[str, _Picture] = {}  # those of which some views are encoded
        on_cpu = model.device.type == "cpu"
        self.at_once = max(1, _PIXELS // model.config.image.size**2) if on_cpu else _VIEWS
        if rounds_inputs(model):
            self.at_once = 1

    def encode(self, plan: Plan) -> Plan:
        """Encode the pictures of the planned tokens that are not known yet. Returns the part of the plan that can run.

        A step encodes a few groups of views (one, where a request waits for it that could go on): what needs more is
        encoded over several steps, what was begun first. Bad pictures end their requests.
        """
        needed: dict[str, _Picture] = {}
        kept: Plan = []
        waits = any(all(image.digest in self.tokens for image in _planned(pair)) for pair in plan)
        most, views = self.at_once if waits else _GROUPS * self.at_once, 0
        for pair in sorted(plan, key=lambda pair: not any(image.digest in self.begun for image in _planned(pair))):
            one = pair[0]
            unknown = {i.digest: i for i in _planned(pair) if i.digest not in self.tokens and i.digest not in needed}
            begun = {digest: self.begun[digest] for digest in unknown if digest in self.begun}
            more = sum(begun[name].left if name in begun else i.layout.views for name, i in unknown.items())
            if more and needed and views + more > most:
                continue
            views += more
            try:
                for digest, image in unknown.items():
                    needed[digest] = begun.get(digest) or _Picture(image, one.request.variant, image.views(), one)
            except LlavaError as error:
                self._scheduler.finish(one, "error", error)
            except Exception as error:  # noqa: BLE001  no request's data may end another request
                self._scheduler.finish(one, "error", LlavaError(f"a picture could not be prepared: {error}"))
            else:
                kept.append(pair)
        self._encode_groups(list(needed.values()), most)
        unfinished = {digest: one for digest, one in (self.begun | needed).items() if digest not in self.tokens}
        self.begun = {digest: one for digest, one in unfinished.items() if self._for_whom(digest)}
        kept = [pair for pair in kept if pair[0].finished is None and self._has(pair)]
        for pair in kept:
            self._use(*pair)
        self._forget({image.digest for pair in kept for image in _planned(pair)})
        return kept

    def _has(self, pair: tuple[Generation, int]) -> bool:
        return all(image.digest in self.tokens for image in _planned(pair))

    def _use(self, one: Generation, tokens: int) -> None:
        """Note that a request's next tokens show pictures, and which of these it had not to wait for."""
        for image in _planned((one, tokens)):
            self.tokens.move_to_end(image.digest)
            if image.digest in one.encoded:
                one.encoded.remove(image.digest)
            elif image.start >= one.filled or one.filled == one.usage.reused_tokens:  # else it was counted before
                one.usage = replace(one.usage, reused_images=one.usage.reused_images + 1)

    def _forget(self, used: set[str]) -> None:
        for digest in list(self.tokens):
            if self.bytes <= _BYTES:
                return
            if digest not in used:
                self.bytes -= self.tokens.pop(digest).nbytes

    def _for_whom(self, digest: str) -> Generation | None:
        """The first running request that still needs a picture."""
        return next((one for one in self._scheduler.running if _needs(one, digest)), None)

    def _encode_groups(self, pictures: Sequence[_Picture], most: int) -> None:
        """Encode so many views of pictures, those of one variant together, in their order."""
        group: list[_Picture] = []
        for picture in pictures:
            full = sum(other.left for other in group) + picture.left > self.at_once
            if group and (full or picture.variant != group[0].variant):
                most -= self._encode_group(group, most)
                group = []
            if most <= 0:
                return
            group.append(picture)
        if group:
            self._encode_group(group, most)

    def _encode_group(self, group: list[_Picture], most: int) -> int:
        """Encode pictures of one variant; at most so many of their views. Returns how many.

        Where that fails, each picture alone; the requests that still need a bad one end.
        """
        counts = [picture.left for picture in group]
        try:
            if self._variants is not None:
                self._variants.encode(group[0].variant)
            views = torch.cat([picture.views[-count:] for picture, count in zip(group, counts, strict=True)])[:most]
            parts = torch.split(views.to(self._model.device, self._model.dtype), self.at_once)
            features = torch.cat([self._model.vision(part) for part in parts])
            for picture, part in zip(group, _split(features, counts), strict=True):
                picture.features.append(part)
            whole = [picture for picture in group if not picture.left]
            layouts = [picture.image.layout for picture in whole]
            encoded = [part for picture in whole for part in picture.features]
            tokens = self._model.project(torch.cat(encoded), layouts) if whole else features[:0]
        except Exception as error:  # noqa: BLE001  out of memory, say
            for picture in group:
                picture.features.clear()
            if len(group) > 1:
                return sum(self._encode_group([picture], most) for picture in group)
            for one in list(self._scheduler.running):
                if _needs(one, group[0].image.digest):
                    self._scheduler.finish(one, "error", EngineError(f"a picture could not be encoded: {error}"))
            return counts[0]
        for picture, part in zip(whole, _split(tokens, [layout.num_tokens for layout in layouts]), strict=True):
            self._add(picture, part.clone())
        return len(views)

    def _add(self, picture: _Picture, tokens: Tensor) -> None:
        digest = picture.image.digest
        self.tokens[digest] = tokens
        self.bytes += tokens.nbytes
        one = picture.asked_by if picture.asked_by.finished is None else self._for_whom(digest)
        if one is not None:
            one.encoded.add(digest)
            one.usage = replace(one.usage, encoded_images=one.usage.encoded_images + 1)


def _planned(pair: tuple[Generation, int]) -> list[RequestImage]:
    """The pictures whose placeholders are in the planned tokens of a request."""
    one, tokens = pair
    return seen(one, one.filled, one.filled + tokens)


def _needs(one: Generation, digest: str) -> bool:
    return any(image.digest == digest for image in seen(one, one.filled, one.length))


def _split(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """So many rows after one another; the last get what is there."""
    ends = list(accumulate(counts))
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]
