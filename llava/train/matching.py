"""The loss of stage `match`: a picture's tokens, on average, lie where the words of its own caption do.

A picture is told from others by the LLM's own table of embeddings: its tokens' mean must be nearer to the mean
embedding of its caption's tokens than to those of other captions (InfoNCE: van den Oord et al. 2018; for pictures and
captions: Radford et al. 2021). Nearness is that of Mahalanobis: along directions in which all captions differ much,
such as how frequent their words are, a difference counts less. The LLM does not run, so a step costs little more than
the vision encoder. What it gives is a projector, and on request an encoder, for the next stage to begin with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.models.llava import LlavaModel
from llava.processor import IGNORE
from llava.train.precision import autocast

TEMPERATURE = 0.05
MOST_CAPTIONS = 16384  # that a picture is told from, in a step
FLOOR = 0.1  # added to the variance in each direction, as a part of the mean variance


def caption_of(labels: Sequence[int]) -> tuple[int, ...]:
    """A row's caption, from the labels of its prompt."""
    return tuple(label for label in labels if label != IGNORE)


class Captions:
    """The different captions of a data set, and the metric in which pictures are compared with them.

    place: of each caption's tokens. texts (C, D): unit vectors of the captions in the metric. whiten (D, D): takes a
    difference of embeddings to where its length is Mahalanobis's.
    """

    @torch.no_grad()
    def __init__(self, model: LlavaModel, captions: Sequence[tuple[int, ...]]) -> None:
        self.place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        words = torch.tensor([token for caption in self.place for token in caption], device=model.device)
        starts = torch.tensor([0, *(len(caption) for caption in self.place)], device=model.device).cumsum(0)[:-1]
        away = F.embedding_bag(words, model.llm.embed_tokens.weight, starts, mode="mean")
        away -= away.mean(0)
        values, vectors = torch.linalg.eigh(away.T @ away / len(away))
        self.whiten = vectors * (values.clamp(min=0) + FLOOR * values.mean()).rsqrt() @ vectors.T
        self.texts = F.normalize(away @ self.whiten, dim=-1)


def matching_loss(
    model: LlavaModel,
    features: Tensor,
    own: Sequence[tuple[int, ...]],
    captions: Captions,
    precision: str = "float32",
) -> Tensor:
    """Cross-entropy, summed over the rows, of each row's own caption among the rows' and others.

    features: the encoder's (views, T, Dv), of one picture of one view a row. Where the data set has more captions than
    MOST_CAPTIONS, a random choice of them stands for the rest. precision: of the projector; float32 or bfloat16.
    """
    places = torch.tensor([captions.place[caption] for caption in own])
    others = torch.randperm(len(captions.texts))[:MOST_CAPTIONS]
    choices, order = torch.unique(torch.cat([places, others]), return_inverse=True)
    texts, targets = captions.texts[choices.to(features.device)], order[: len(places)].to(features.device)
    with autocast(model, precision):
        tokens = model.projector(features)  # (B, T, D)
    pictures = F.normalize(tokens.float().mean(1) @ captions.whiten, dim=-1)  # (B, D)
    return F.cross_entropy(pictures @ texts.T / TEMPERATURE, targets, reduction="sum")
