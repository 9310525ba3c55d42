"""From scores to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llava.errors import LlavaError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 cut nothing.

    Raises LlavaError for a value out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
        ):
            if not valid:
                raise LlavaError(f"{name} must be {expected}, found {getattr(self, name)}")

    def generator(self) -> torch.Generator:
        """A source of randomness of this request's own."""
        source = torch.Generator()
        if self.seed is None:
            source.seed()
        else:
            source.manual_seed(self.seed)
        return source


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p, in that order, as in transformers.

    top-p keeps the likeliest tokens up to and including the one that crosses p (Holtzman et al. 2020).
    """
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        surplus = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        scores = scores.scatter(0, order, ordered.masked_fill(surplus, -torch.inf))
    return scores.softmax(-1)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token for scores (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(distribution(logits, sampling).cpu(), 1, generator=generator))
