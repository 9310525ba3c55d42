"""Messages and pictures to model input: the one path of chat, training and evaluation.

Ids and labels are built side by side from the template's segments. Every image or video becomes exactly
`layout.num_tokens` placeholders before the model runs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.chat.jinja import render_jinja
from llava.chat.messages import Image, Message, Visual
from llava.chat.templates import JINJA, ImageSlot, Segment, Text, get_template, render
from llava.config import ImageConfig, VideoConfig
from llava.errors import LlavaError
from llava.media.images import pixels_of, views_of
from llava.media.tiling import Layout, image_layout, video_layout
from llava.models.llava import IMAGE_TOKEN
from llava.tokenizer import Tokenizer

IGNORE = -100  # the label of a token that is not supervised


@dataclass(frozen=True)
class ImageSpan:
    """An image or video, where its placeholders begin in the ids, and how its features become as many tokens."""

    image: Visual
    start: int
    layout: Layout

    @property
    def length(self) -> int:
        """How many placeholders."""
        return self.layout.num_tokens


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
    """How one model's conversations become ids, and its pictures pixels.

    The fields from `template` on are those of LlavaConfig.
    """

    tokenizer: Tokenizer
    image: ImageConfig
    video: VideoConfig | None
    tokens_per_view: int
    template: str
    system: str | None
    images_first: bool
    around_image: tuple[str, str] = ("", "")
    chat_template: str | None = None

    def with_template(self, name: str) -> "Processor":
        """The same processor with another template. Raises LlavaError for an unknown one."""
        return replace(self, template=get_template(name).name)

    def layout(self, size: tuple[int, int]) -> Layout:
        """How a picture of this size (width, height) becomes tokens."""
        return image_layout(size, self.image.tiling, self.image.size, self.tokens_per_view)

    def _layout_of(self, visual: Visual) -> Layout:
        if isinstance(visual, Image):
            return self.layout(visual.open().size)
        if self.video is None:
            raise LlavaError(f"{visual.source}: this model takes images, not videos")
        return video_layout(len(visual.sampled.frames), self.video, self.tokens_per_view)

    def system_text(self) -> str:
        """The system text that a conversation without one of its own gets, where it is known."""
        if self.template == JINJA:
            return self.system or ""
        return get_template(self.template).system if self.system is None else self.system

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation rendered by the model's template."""
        if self.template != JINJA:
            segments = render(get_template(self.template), messages, self.system, self.images_first)
            return _surround(segments, self.around_image)
        if self.system is not None and messages and messages[0].role != "system":
            messages = [Message.system(self.system), *messages]
        ids = {"bos_token": self.tokenizer.bos_id, "eos_token": self.tokenizer.eos_id}
        special = {k: "" if i is None else self.tokenizer.decode([i], keep_special=True) for k, i in ids.items()}
        return render_jinja(self.chat_template or "", messages, special)

    def ending(self) -> str:
        """What follows an answer, and so ends generation."""
        if self.template != JINJA:
            return get_template(self.template).after_answer
        segments = self.segments([Message.user("a"), Message.assistant("b")])
        answer = next((part.text for part in segments if isinstance(part, Text) and part.trainable), None)
        if answer is None:
            raise LlavaError("this checkpoint's chat template leaves answers out; name a --template instead")
        return answer.rpartition("b")[2]

    def prompt(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]] | None = None) -> Prompt:
        """Render a conversation to ids and labels. Opens the images, unless `sizes` gives their (width, height).

        Raises LlavaError for a bad conversation, picture or video.
        """
        known = None if sizes is None else iter(sizes)
        texts, slots = _between_images(self.segments(messages))
        # The whole text between two images at once, as the reference implementations do: a token belongs to the
        # segment in which it begins.
        encodings = self.tokenizer.encode_parts(["".join(part.text for part in text) for text in texts])
        bos = self.tokenizer.bos_id
        ids = [] if bos is None or encodings[0][0][:1] == [bos] else [bos]
        labels = [IGNORE] * len(ids)
        spans: list[ImageSpan] = []
        for text, (tokens, starts), slot in zip(texts, encodings, [*slots, None], strict=True):
            trainable = [part.trainable for part in text for _ in part.text]
            ids += tokens
            labels += [token if trainable[start] else IGNORE for token, start in zip(tokens, starts, strict=True)]
            if slot is not None:
                layout = self._layout_of(slot.image) if known is None else self.layout(next(known))
                spans.append(ImageSpan(slot.image, len(ids), layout))
                ids += [IMAGE_TOKEN] * layout.num_tokens
                labels += [IGNORE] * layout.num_tokens
        return Prompt(ids, labels, spans)

    def views(self, visuals: Sequence[Visual]) -> Tensor:
        """Pictures and videos to what the encoder sees of them, in order: (views, 3, size, size), float32."""
        if not visuals:
            return torch.empty(0, 3, self.image.size, self.image.size)
        return torch.cat([self._views_of(visual) for visual in visuals])

    def _views_of(self, visual: Visual) -> Tensor:
        if isinstance(visual, Image):
            return views_of(visual.open(), self.image)
        assert self.video is not None  # or it would have got no placeholders
        frame = self.image.model_copy(update={"tiling": None, "aspect": self.video.aspect})
        return torch.stack([pixels_of(picture, frame) for picture in visual.sampled.frames])


def _between_images(segments: list[Segment]) -> tuple[list[list[Text]], list[ImageSlot]]:
    """The images, and the texts around them: one more than there are images, perhaps empty."""
    texts: list[list[Text]] = [[]]
    slots: list[ImageSlot] = []
    for segment in segments:
        if isinstance(segment, ImageSlot):
            slots.append(segment)
            texts.append([])
        else:
            texts[-1].append(segment)
    return texts, slots


def _surround(segments: list[Segment], around: tuple[str, str]) -> list[Segment]:
    if around == ("", ""):
        return segments
    before, after = Text(around[0]), Text(around[1])
    return [item for part in segments for item in ((before, part, after) if isinstance(part, ImageSlot) else (part,))]
