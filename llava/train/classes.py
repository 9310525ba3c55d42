"""Pictures that nobody has: features of classes that the vision encoder tells apart, under the classes' names.

An encoder that was trained to classify photographs knows far more of them than a small data set shows. For stage
`match` some rows of a batch are taken again with the encoder's answer exchanged: instead of what it took the picture
for, features as of a photograph of a class drawn at random, and that class's name as the caption. So the projector
learns what the encoder's classes are called, without a picture of them.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.models.vision.efficientnet_lite import CLASSES, EfficientNetLite, class_features
from llava.tokenizer import Tokenizer

_SHARE = 3  # one made-up row for so many real ones
_SURE, _SPREAD = (5.0, 19.0), 0.1  # scores above the mean of classes alike; noise, as a part of that


class MadeUpClasses:
    """Draws made-up rows. captions: the ids of each named class's name."""

    def __init__(self, model: LlavaModel, names: Path, tokenizer: Tokenizer) -> None:
        """names: a JSON list of the classes' names, null for a class that is left out. Raises LlavaError."""
        vision = model.vision
        if not isinstance(vision, EfficientNetLite) or vision.classifier is None:
            raise LlavaError("class_names: the vision encoder does not classify (model.encoder.classes)")
        try:
            listed = json.loads(names.read_text(encoding="utf-8"))
        except OSError as error:
            raise LlavaError(f"{names}: class names cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise LlavaError(f"{names}: not valid JSON ({error})") from None
        if not isinstance(listed, list) or len(listed) != CLASSES or not any(listed):
            raise LlavaError(f"{names}: expected a list of {CLASSES} names, null where a class is left out")
        named = [index for index, name in enumerate(listed) if name]
        self.captions = [tuple(tokenizer.encode(f"{listed[index]}\n")[0]) for index in named]
        self._named = torch.tensor(named)
        count = {caption: self.captions.count(caption) for caption in set(self.captions)}
        self._chances = torch.tensor([count[caption] ** -0.5 for caption in self.captions])  # 118 classes are dogs
        with torch.no_grad():
            weight = vision.classifier.weight.float().cpu()
            directions = F.normalize(weight - weight.mean(0), dim=-1)
            self._alike = directions @ directions.T  # (1000, 1000): which classes the encoder takes for each other

    def count(self, rows: int) -> int:
        """How many made-up rows go with so many real ones."""
        return rows // _SHARE

    def rows(self, features: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Made-up rows for real features (N, T, D), whose last columns are the classes', and their captions."""
        number = self.count(len(features))
        drawn = torch.multinomial(self._chances, number, replacement=True)
        low, high = _SURE
        sure = low + (high - low) * torch.rand(number, 1)
        scores = sure * (self._alike[self._named[drawn]] + _SPREAD * torch.randn(number, CLASSES))
        made = features[torch.randperm(len(features))[:number]].clone()
        made[:, :, -CLASSES:] = class_features(scores).to(made.device, made.dtype)[:, None]
        return made, [self.captions[index] for index in drawn.tolist()]
