"""From scores to the next token."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.engine.grammar import Grammar
from llava.errors import LlavaError

_CANDIDATES = 1024  # tokens among which the likeliest are looked for first


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; by default nothing is cut, penalised or reported.

    min_p: tokens less likely than this part of the likeliest are cut.
    repetition_penalty: divides the scores of what prompt and answer hold (Keskar et al. 2019); 1 is none.
    presence_penalty, frequency_penalty: taken off the scores of what the answer holds, once or as often, as in
    OpenAI's API. logit_bias: (token, addend) pairs. logprobs: report each token's, and those of so many likeliest.
    grammar: what the answer must fit. lookup: guess at greedy answers by what stood in the prompt; it changes none.
    Raises LlavaError for a value out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    lookup: bool = True

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "of 64 bits"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("logit_bias", all(i >= 0 and -100 <= b <= 100 for i, b in self.logit_bias), "ids to -100 up to 100"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "between 0 and 20"),
        ):
            if not valid:
                raise LlavaError(f"{name} must be {expected}, found {getattr(self, name)}")

    @property
    def plainly_greedy(self) -> bool:
        """Whether the next token is just the one with the highest score."""
        return self.temperature == 0 and not self.penalises and not self.logit_bias and self.grammar is None

    @property
    def penalises(self) -> bool:
        """Whether scores depend on what prompt and answer hold."""
        return any((self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty))

    def generator(self) -> torch.Generator:
        """A source of randomness of this request's own."""
        source = torch.Generator()
        if self.seed is None:
            source.seed()
        else:
            source.manual_seed(self.seed)
        return source


def several(sampling: Sampling, n: int) -> list[Sampling]:
    """For n answers to one prompt: with a seed, each has the next (after the largest comes the least).

    Raises LlavaError unless n is 1 or more.
    """
    if n < 1:
        raise LlavaError(f"n must be at least 1, found {n}")
    if sampling.seed is None:
        return [sampling] * n
    return [replace(sampling, seed=(sampling.seed + index + 2**63) % 2**64 - 2**63) for index in range(n)]


class Held:
    """What penalties go by: the tokens (V,) that prompt and answer hold, and how often (V,) the answer does.

    prompt: ids; placeholders of pictures are negative, and left out.
    """

    def __init__(self, prompt: Sequence[int], vocab_size: int, device: torch.device | None = None) -> None:
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.seen[[token for token in set(prompt) if token >= 0]] = True
        self.times = torch.zeros(vocab_size, device=device)

    def add(self, token: int) -> None:
        """One more token of the answer."""
        self.seen[token] = True
        self.times[token] += 1


def penalised(logits: Tensor, sampling: Sampling, held: Held | None) -> Tensor:
    """Scores (V,) after bias and penalties. held: needed where the sampling penalises."""
    scores = logits.clone()
    if held is not None:
        factor = sampling.repetition_penalty
        scores = torch.where(held.seen, torch.where(scores > 0, scores / factor, scores * factor), scores)
        scores -= sampling.presence_penalty * (held.times > 0) + sampling.frequency_penalty * held.times
    if sampling.logit_bias:
        tokens, biases = _biases(sampling.logit_bias, len(scores))
        scores.index_add_(0, tokens.to(scores.device), biases.to(scores))
    return scores


@functools.lru_cache(maxsize=64)  # each of a request's tokens needs them
def _biases(pairs: tuple[tuple[int, float], ...], vocab_size: int) -> tuple[Tensor, Tensor]:
    known = [(token, bias) for token, bias in pairs if token < vocab_size]
    return torch.tensor([token for token, _ in known], dtype=torch.long), torch.tensor([bias for _, bias in known])


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, top-k, top-p and min-p, in that order, as in transformers.

    top-p keeps the likeliest tokens up to and including the one that crosses p (Holtzman et al. 2020).
    """
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < sampling.min_p * probabilities.max(), -torch.inf)
    return scores.softmax(-1)


def _nucleus(scores: Tensor, p: float) -> Tensor:
    """The scores (V,) without the tokens beyond p. To sort them all takes milliseconds; mostly a thousand hold p."""
    total = scores.logsumexp(0)
    ordered, order = scores.topk(min(_CANDIDATES, len(scores)))
    if float((ordered - total).exp().sum()) > p + 1e-4:
        order = order.sort().values
        ordered, places = scores[order].sort(descending=True, stable=True)
        order = order[places]
    else:
        ordered, order = scores.sort(descending=True, stable=True)
    probabilities = (ordered - total).exp()
    kept = probabilities.cumsum(-1) - probabilities < p
    return torch.full_like(scores, -torch.inf).index_put((order[kept],), ordered[kept])


def choose(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    held: Held | None = None,
    allowed: Tensor | None = None,
) -> int:
    """The next token for scores (V,), after what prompt and answer hold; one that is `allowed` (V,)."""
    if not sampling.plainly_greedy:
        logits = penalised(logits, sampling, held)
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
    if sampling.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(distribution(logits, sampling).cpu(), 1, generator=generator))
