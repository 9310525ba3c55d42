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

TEMPERATURE = 0.05
MOST_CAPTIONS = 16384  # that a picture is told from, in a step
FLOOR = 0.1  # added to the variance in each direction, as a part of the mean variance


def caption_of(labels: Sequence[int]) -> tuple[int, ...]:
    """A row's caption, from the labels of its prompt."""
    return tuple(label for label in labels if label != IGNORE)


class Captions:
    """The different captions of a data set, and the metric in which pictures are compared with them.

    ids: each caption's tokens, once, in order of first use. middle (D): the mean of their embeddings. whiten (D, D):
    takes a difference of embeddings to where its length is Mahalanobis's.
    """

    def __init__(self, model: LlavaModel, captions: Sequence[tuple[int, ...]]) -> None:
        self.ids = list(dict.fromkeys(captions))
        texts = _embed(model, self.ids)
        self.middle = texts.mean(0)
        away = texts - self.middle
        values, vectors = torch.linalg.eigh(away.T @ away / len(away))
        self.whiten = vectors * (values.clamp(min=0) + FLOOR * values.mean()).rsqrt() @ vectors.T


def matching_loss(model: LlavaModel, features: Tensor, own: Sequence[tuple[int, ...]], captions: Captions) -> Tensor:
    """Cross-entropy, summed over the rows, of each row's own caption among the rows' and others.

    features: the encoder's (views, T, Dv), of one picture of one view a row. Where the data set has more captions than
    MOST_CAPTIONS, a random choice of them stands for the rest.
    """
    others = [captions.ids[i] for i in torch.randperm(len(captions.ids))[:MOST_CAPTIONS].tolist()]
    choices = list(dict.fromkeys([*own, *others]))
    place = {caption: i for i, caption in enumerate(choices)}
    targets = torch.tensor([place[caption] for caption in own], device=features.device)
    texts = F.normalize((_embed(model, choices) - captions.middle) @ captions.whiten, dim=-1)  # (C, D)
    pictures = F.normalize(model.projector(features).mean(1) @ captions.whiten, dim=-1)  # (B, D)
    return F.cross_entropy(pictures @ texts.T / TEMPERATURE, targets, reduction="sum")


@torch.no_grad()
def _embed(model: LlavaModel, captions: Sequence[tuple[int, ...]]) -> Tensor:
    """The mean embedding (C, D) of each caption's tokens."""
    words = torch.tensor([token for caption in captions for token in caption], device=model.device)
    lengths = torch.tensor([0, *(len(caption) for caption in captions[:-1])], device=model.device)
    return F.embedding_bag(words, model.llm.embed_tokens.weight, lengths.cumsum(0), mode="mean")
