"""The loss of stage `match`: a picture's tokens, on average, lie where the words of its own caption do.

A picture is told from others by the LLM's own table of embeddings: the mean of its tokens must be more like the mean
embedding of its caption's tokens than like those of other captions (InfoNCE: van den Oord et al. 2018; for pictures and
captions: Radford et al. 2021). Captions are taken without what they all share, which tells none from another, and
features likewise. Captions are compared twice, by the cosine of the embeddings as they are, as the LLM reads them, and
after whitening: directions in which all captions differ, such as how frequent their words are, hide what tells them
apart. The LLM does not run, so a step costs little more than the vision encoder. What it gives is a projector, and on
request an encoder, for the next stage to begin with.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.models.llava import LlavaModel
from llava.processor import IGNORE
from llava.train.precision import autocast

TEMPERATURE = 0.05
MOST_CAPTIONS = 16384  # that a picture is told from, in a step
FLOOR = 0.1  # added to the variance in each direction before whitening, as a part of the mean variance


def caption_of(labels: Sequence[int]) -> tuple[int, ...]:
    """A row's caption, from the labels of its prompt."""
    return tuple(label for label in labels if label != IGNORE)


class Captions:
    """The different captions of a data set, and the two spaces in which pictures are compared with them.

    place: of each caption's tokens. spaces (2, D, D): what takes embeddings into each. texts (2, C, D): unit vectors.
    """

    @torch.no_grad()
    def __init__(self, model: LlavaModel, captions: Sequence[tuple[int, ...]]) -> None:
        self.place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        words = torch.tensor([token for caption in self.place for token in caption], device=model.device)
        starts = torch.tensor([0, *(len(caption) for caption in self.place)], device=model.device).cumsum(0)[:-1]
        away = F.embedding_bag(words, model.llm.embed_tokens.weight, starts, mode="mean")
        away -= away.mean(0)
        values, vectors = torch.linalg.eigh(away.T @ away / len(away))
        whiten = vectors * (values.clamp(min=0) + FLOOR * values.mean()).rsqrt() @ vectors.T
        self.spaces = torch.stack([torch.eye(len(whiten), device=whiten.device), whiten])
        self.texts = F.normalize(away @ self.spaces, dim=-1)


def matching_loss(
    model: LlavaModel,
    features: Tensor,
    own: Sequence[tuple[int, ...]],
    captions: Captions,
    precision: str = "float32",
) -> Tensor:
    """Cross-entropy, summed over the rows, of each row's own caption among the rows' and others.

    features: the encoder's (views, T, Dv), of one picture of one view a row. Where the data set has more captions than
    MOST_CAPTIONS, a random choice of them stands for the rest. precision: of the projector and the comparison;
    float32 or bfloat16.
    """
    targets, texts = torch.tensor([captions.place[caption] for caption in own]), captions.texts
    if len(captions.place) > MOST_CAPTIONS:
        others = torch.randperm(len(captions.place))[:MOST_CAPTIONS]
        choices, order = torch.unique(torch.cat([targets, others]), return_inverse=True)
        targets, texts = order[: len(targets)], texts[:, choices.to(features.device)]
    with autocast(model, precision):
        tokens = model.projector(features)  # (B, T, D)
    pictures = F.normalize(tokens.float().mean(1) @ captions.spaces, dim=-1)  # (2, B, D)
    with autocast(model, precision):
        scores = pictures @ texts.transpose(1, 2)  # (2, B, C)
    scores = scores.float().flatten(0, 1) / TEMPERATURE
    return F.cross_entropy(scores, targets.to(features.device).repeat(2), reduction="sum") / 2


@torch.no_grad()
def move_origin(projector: nn.Module, by: Tensor) -> None:
    """Have a projector give for the features x what it gave for x + by (Dv)."""
    first = next(module for module in projector.modules() if isinstance(module, nn.Linear))
    assert first.bias is not None
    first.bias.add_(first.weight @ by)


@torch.no_grad()
def scatter_as_words(projector: nn.Module, features: Iterable[Tensor], table: Tensor) -> None:
    """Have a projector's tokens lie around the mean of the LLM's embeddings `table` (V, D), as far from it as these do.

    features: (N, T, Dv) each, whose tokens lie around zero as the loss leaves them, which sees their direction alone.
    """
    mean = table.mean(0)
    far = (table - mean).square().sum(-1).mean()
    now = torch.cat([projector(x).square().sum(-1).flatten() for x in features]).mean()
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1]
    assert last.bias is not None
    last.weight.mul_((far / now).sqrt())
    last.bias.mul_((far / now).sqrt()).add_(mean)
