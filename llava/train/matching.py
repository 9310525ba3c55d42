"""The loss of stage `match`: a picture's tokens, on average, lie where the words of its own caption do.

A picture is told from others by the LLM's own table of embeddings: its tokens' mean must be nearer to the mean
embedding of its caption's tokens than to those of other captions (InfoNCE: van den Oord et al. 2018; for pictures and
captions: Radford et al. 2021). The LLM does not run, so a step costs little more than the vision encoder. What it gives
is a projector, and on request an encoder, for `align` to begin with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.models.llava import LlavaModel
from llava.processor import IGNORE
from llava.train.data import Batch

TEMPERATURE = 0.05
MOST_CAPTIONS = 16384  # that a picture is told from, in a step


def captions_of(labels: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The different captions of a data set, from the labels of its prompts, in order of first use."""
    return list(dict.fromkeys(tuple(label for label in row if label != IGNORE) for row in labels))


def matching_loss(model: LlavaModel, batch: Batch, features: Tensor, captions: Sequence[tuple[int, ...]]) -> Tensor:
    """Cross-entropy, summed over the batch, of each row's own caption among its batch's and others.

    features: the encoder's (views, T, Dv), of one picture of one view a row. captions: of the whole data set; where
    there are more than MOST_CAPTIONS, a random choice of them stands for the rest.
    """
    own = captions_of(batch.labels.tolist())
    others = [captions[i] for i in torch.randperm(len(captions))[:MOST_CAPTIONS].tolist()]
    choices = list(dict.fromkeys([*own, *others]))
    place = {caption: i for i, caption in enumerate(choices)}
    targets = torch.tensor([place[captions_of([row])[0]] for row in batch.labels.tolist()], device=features.device)
    words = torch.tensor([token for caption in choices for token in caption], device=features.device)
    lengths = torch.tensor([0, *(len(caption) for caption in choices[:-1])], device=features.device)
    with torch.no_grad():
        texts = F.embedding_bag(words, model.llm.embed_tokens.weight, lengths.cumsum(0), mode="mean")  # (C, D)
        texts = F.normalize(texts - texts.mean(0), dim=-1)  # what all captions share tells none from another
    pictures = F.normalize(model.projector(features).mean(1), dim=-1)  # (B, D)
    return F.cross_entropy(pictures @ texts.T / TEMPERATURE, targets, reduction="sum")
