"""Pictures that nobody has: a row of data may say that its picture is to be taken for a class that the encoder knows.

An encoder that was trained to classify photographs knows far more of them than a small data set shows. In such a row,
with `"imagined_class": 285`, what the encoder took its picture for is exchanged for features as of a photograph of that
class, so that projector and LLM learn what the encoder's classes are called. All else that it says stays.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.errors import LlavaError
from llava.models.vision.efficientnet_lite import CLASSES, EfficientNetLite, class_features

_SURE, _NOISE = (5.0, 19.0), 0.1  # scores of the class; noise of all scores, as a part of that


class ImaginedClasses:
    """Makes up what an encoder says of a picture of one of its classes."""

    def __init__(self, vision: nn.Module) -> None:
        """Raises LlavaError for an encoder that has no classes beside its features."""
        if not isinstance(vision, EfficientNetLite) or vision.classifier is None:
            raise LlavaError("the data has rows with 'imagined_class', but the encoder gives no classes")
        with torch.no_grad():
            weight = vision.classifier.weight.float()
            directions = F.normalize(weight - weight.mean(0), dim=-1)
            self._alike = directions @ directions.T  # (1000, 1000): which classes the encoder takes for each other

    def exchange(self, features: Tensor, classes: Mapping[int, int]) -> Tensor:
        """Features (N, T, D), those of the classes, which are the last, made up for the views that `classes` names."""
        views = torch.tensor(list(classes), device=features.device)
        alike = self._alike[list(classes.values())].to(features.device)
        low, high = _SURE
        sure = low + (high - low) * torch.rand(len(views), 1, device=features.device)
        scores = sure * (alike + _NOISE * torch.randn_like(alike))
        made = features.clone()
        made[views, :, -CLASSES:] = class_features(scores).to(made.dtype)[:, None]
        return made
