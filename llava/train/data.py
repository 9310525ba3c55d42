"""LLaVA's training JSON, through the same processor as chat: rows -> prompts -> batches.

A row that cannot be used is dropped, counted by its reason, and reported; it is never cut to fit.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.chat.messages import Image, Message, Role, Visual
from llava.errors import LlavaError
from llava.media.tiling import Layout
from llava.models.vision.efficientnet_lite import CLASSES
from llava.processor import IGNORE, Processor, Prompt
from llava.train.recipe import DataConfig

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
KEY = "imagined_class"  # of a row whose picture is to be taken for a class that the encoder knows
_MEGABATCH = 50  # batches that are sorted by length together: little padding, still a random order


def load_rows(path: Path) -> list[Any]:
    """The rows of a LLaVA JSON file. Raises LlavaError when it is missing or not a list."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlavaError(f"{path}: data cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise LlavaError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise LlavaError(f"{path}: expected a list of rows with 'id', 'image' and 'conversations'")
    return rows


def messages_of(row: Any, images: Path) -> list[Message]:
    """A row's conversation; `<image>` in its text stands for the row's images, in order.

    Raises LlavaError, with a reason that does not name the row, when the row is malformed.
    """
    try:
        if row.get("video"):
            raise LlavaError("rows with a video cannot be trained on")
        names = _image_names(row)
        turns = [(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]
        pictures = iter([Image(images / name) for name in names])
        pieces = [(role, value.split("<image>")) for role, value in turns]
    except (AttributeError, KeyError, TypeError):
        raise LlavaError("malformed row: expected 'conversations' with 'from' and 'value'") from None
    if not turns or turns[-1][0] != "assistant":
        raise LlavaError("the conversation does not end with an answer")
    if sum(len(texts) - 1 for _, texts in pieces) != len(names):
        raise LlavaError("the number of <image> in the text is not the number of images")
    messages = []
    for role, texts in pieces:
        content: list[str | Visual] = [texts[0]]
        for text in texts[1:]:
            content += [next(pictures), text]
        messages.append(Message(role, tuple(part for part in content if part != "")))
    return messages


def _class_of(row: Any, views: list[int]) -> int | None:
    value = row.get(KEY)
    if value is None:
        return None
    if views != [1]:
        raise LlavaError(f"a row with '{KEY}' needs one image, of one view")
    if type(value) is not int or not 0 <= value < CLASSES:
        raise LlavaError(f"'{KEY}' must be a number from 0 to {CLASSES - 1}")
    return value


def _image_names(row: Any) -> list[str]:
    names = row.get("image") or []
    return [names] if isinstance(names, str) else list(names)


@dataclass(frozen=True)
class Sample:
    """A usable row: its index, its length in tokens with images expanded, and its images' sizes (width, height).

    as_class: what its picture is to be taken for (llava.train.classes).
    """

    row: int
    length: int
    sizes: tuple[tuple[int, int], ...]
    as_class: int | None = None


@dataclass(frozen=True)
class Dataset:
    """The usable rows of a file, measured. `dropped` counts the others by reason."""

    rows: list[Any]
    config: DataConfig
    processor: Processor
    samples: list[Sample]
    dropped: Counter[str]

    def messages(self, sample: Sample) -> list[Message]:
        """The conversation of a sample."""
        return messages_of(self.rows[sample.row], self.config.images)

    def prompt(self, sample: Sample) -> Prompt:
        """Ids and labels of a sample."""
        return self.processor.prompt(self.messages(sample), sample.sizes)

    def image_sizes(self) -> dict[Path, tuple[int, int]]:
        """Every picture that the usable rows show, once, in order of first use, and its size."""
        return {
            self.config.images / name: size
            for sample in self.samples
            for name, size in zip(_image_names(self.rows[sample.row]), sample.sizes, strict=True)
        }


def measure(
    config: DataConfig,
    processor: Processor,
    max_tokens: int,
    decode: bool,
    on_row: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Check every row and count its tokens; `on_row` hears of each (done, all).

    decode: read every picture whole, not only its header; for pictures that are about to be encoded anyway.
    Raises LlavaError when more rows are unusable than `config.max_dropped` allows, or all of them.
    """
    rows = load_rows(config.path)
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    example = ""
    for index, row in enumerate(rows):
        if on_row:
            on_row(index + 1, len(rows))
        try:
            messages = messages_of(row, config.images)
            images = [Image(config.images / name) for name in _image_names(row)]
            sizes = tuple(image.open().size if decode else image.size for image in images)
            as_class = _class_of(row, [processor.layout(size).views for size in sizes])
            prompt = processor.prompt(messages, sizes)
            if len(prompt.ids) > max_tokens:
                raise LlavaError(f"longer than max_tokens ({max_tokens})")
            if all(label == IGNORE for label in prompt.labels[1:]):
                raise LlavaError("no supervised token")
        except LlavaError as error:
            reason = _reason(str(error), config.images)
            example = example or f"row {index}: {error}"
            dropped[reason] += 1
        else:
            samples.append(Sample(index, len(prompt.ids), sizes, as_class))
    bad = sum(dropped.values())
    if bad > config.max_dropped * len(rows) or not samples:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common(5))
        raise LlavaError(
            f"{config.path}: {bad} of {len(rows)} rows cannot be used ({reasons}; first: {example}); "
            f"mend the data or raise data.max_dropped (now {config.max_dropped})"
        )
    return Dataset(rows, config, processor, samples, dropped)


def _reason(text: str, images: Path) -> str:
    """An error's text without the name of the file, so that equal reasons are counted together."""
    return text.split(": ", 1)[1] if text.startswith(str(images)) and ": " in text else text


def batch_order(samples: Sequence[Sample], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches, as indices into `samples`: random, but of like modality and length.

    Depends on nothing but its arguments, so a run can be resumed anywhere.
    Source: `group_by_modality_length` of haotian-liu/LLaVA llava/train/llava_trainer.py.
    """
    rng = np.random.default_rng((seed, epoch))
    batches: list[list[int]] = []
    for with_images in (True, False):
        pool = [i for i, sample in enumerate(samples) if bool(sample.sizes) == with_images]
        order = [pool[i] for i in rng.permutation(len(pool))]
        for start in range(0, len(order), batch_size * _MEGABATCH):
            group = sorted(order[start : start + batch_size * _MEGABATCH], key=lambda i: -samples[i].length)
            batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def endless_batches(samples: Sequence[Sample], batch_size: int, seed: int, skip: int) -> Iterator[list[int]]:
    """Batches of epoch after epoch, without the first `skip`."""
    epoch = 0
    while True:
        batches = batch_order(samples, batch_size, seed, epoch)
        yield from batches[skip:]
        skip = max(0, skip - len(batches))
        epoch += 1


@dataclass(frozen=True)
class Batch:
    """Padded on the right. ids, labels: (B, T). visual: views (N, 3, H, W) or their cached features (N, T, Dv).

    layouts: of each picture, in order; they say which of the views are its own. classes: what views are taken for.
    """

    ids: Tensor
    labels: Tensor
    visual: Tensor
    layouts: list[Layout]
    corrupt: int  # samples left out
    classes: dict[int, int]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device), visual=self.visual.to(device))

    @property
    def supervised(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels[:, 1:] != IGNORE).sum())


def collate(prompts: Sequence[Prompt], visual: Tensor, corrupt: int, classes: dict[int, int]) -> Batch:
    """Pad prompts to one batch. Padding needs no mask: it is on the right and attention is causal."""
    if not prompts:
        none = torch.empty(0, 1, dtype=torch.long)
        return Batch(none, none, visual, [], corrupt, classes)
    layouts = [span.layout for prompt in prompts for span in prompt.spans]
    ids = pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], batch_first=True, padding_value=0)
    labels = pad_sequence([torch.tensor(prompt.labels) for prompt in prompts], batch_first=True, padding_value=IGNORE)
    return Batch(ids, labels, visual, layouts, corrupt, classes)
