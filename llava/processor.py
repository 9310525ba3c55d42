"""Messages and pictures to model input: the one path of chat, training and evaluation.

Ids and labels are built side by side from the template's segments. Every image becomes exactly
`num_image_tokens` placeholders before the model runs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.chat.messages import Image, Message
from llava.chat.templates import ImageSlot, Segment, Text, get_template, render
from llava.config import ImageConfig
from llava.media.images import pixels_of
from llava.models.llava import IMAGE_TOKEN
from llava.tokenizer import Tokenizer

IGNORE = -100  # the label of a token that is not supervised


@dataclass(frozen=True)
class ImageSpan:
    """An image and where its placeholders are in the ids: start and number of tokens."""

    image: Image
    start: int
    length: int


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation. ids and labels have equal lengths; labels are IGNORE where not supervised."""

    ids: list[int]
    labels: list[int]
    spans: list[ImageSpan]

    def keys(self) -> list[Hashable]:
        """One value a token: equal prefixes of keys mean equal inputs, pictures included."""
        keys: list[Hashable] = list(self.ids)
        for span in self.spans:
            digest = span.image.digest
            keys[span.start : span.start + span.length] = [(digest, i) for i in range(span.length)]
        return keys


@dataclass(frozen=True)
class Processor:
    """How one model's conversations become ids, and its pictures pixels."""

    tokenizer: Tokenizer
    image: ImageConfig
    tokens_per_image: int
    template: str
    system: str | None
    images_first: bool

    def with_template(self, name: str) -> "Processor":
        """The same processor with another template."""
        return replace(self, template=name)

    def num_image_tokens(self, size: tuple[int, int]) -> int:
        """How many tokens a picture of this size (width, height) takes. Here the same for every size."""
        return self.tokens_per_image

    def system_text(self) -> str:
        """The system text that a conversation without one of its own gets."""
        return get_template(self.template).system if self.system is None else self.system

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation rendered by the model's template."""
        return render(get_template(self.template), messages, self.system, self.images_first)

    def prompt(self, messages: Sequence[Message], image_tokens: Sequence[int] | None = None) -> Prompt:
        """Render a conversation to ids and labels. Opens the images, unless `image_tokens` gives their counts.

        Raises LlavaError for a bad conversation or picture.
        """
        counts = None if image_tokens is None else iter(image_tokens)
        ids: list[int] = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        labels = [IGNORE] * len(ids)
        spans: list[ImageSpan] = []
        for item in _join_texts(self.segments(messages)):
            if isinstance(item, ImageSlot):
                count = self.num_image_tokens(item.image.open().size) if counts is None else next(counts)
                spans.append(ImageSpan(item.image, len(ids), count))
                ids += [IMAGE_TOKEN] * count
                labels += [IGNORE] * count
            else:
                # One call for the whole text between two images, as the reference implementations do: a token belongs
                # to the segment in which it begins.
                tokens, starts = self.tokenizer.encode("".join(part.text for part in item))
                trainable = [part.trainable for part in item for _ in part.text]
                ids += tokens
                labels += [token if trainable[start] else IGNORE for token, start in zip(tokens, starts, strict=True)]
        return Prompt(ids, labels, spans)

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Pictures to normalised pixels (N, 3, size, size), float32."""
        if not images:
            return torch.empty(0, 3, self.image.size, self.image.size)
        return torch.stack([pixels_of(image.open(), self.image) for image in images])


def _join_texts(segments: list[Segment]) -> list[ImageSlot | list[Text]]:
    joined: list[ImageSlot | list[Text]] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            joined.append(segment)
        elif joined and isinstance(joined[-1], list):
            joined[-1].append(segment)
        else:
            joined.append([segment])
    return joined
