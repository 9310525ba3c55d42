"""Sampling against transformers' logits warpers, and its statistics."""

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava.engine.sampling import Held, Sampling, choose, distribution, penalised
from llava.errors import LlavaError


@pytest.mark.parametrize("spread", [0.01, 3.0, 8.0])  # nearly all tokens, some hundreds and a few make up top_p
def test_top_p_of_a_large_vocabulary_equals_transformers(spread: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * spread
    expected = TopPLogitsWarper(0.95)(None, logits[None])[0]  # type: ignore[arg-type]
    ours = distribution(logits, Sampling(temperature=1.0, top_p=0.95))
    assert abs(int((ours > 0).sum()) - int(expected.isfinite().sum())) <= 1  # where rounding decides about the last
    assert torch.allclose(ours, expected.softmax(-1), atol=1e-3 if spread < 1 else 1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 500])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
def test_distributions_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    for seed in range(5):
        logits = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 3
        expected = TemperatureLogitsWarper(temperature)(None, logits[None])  # type: ignore[arg-type]
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)  # type: ignore[arg-type]
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)  # type: ignore[arg-type]
        ours = distribution(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        assert torch.allclose(ours, expected[0].softmax(-1), atol=1e-6)


@pytest.mark.parametrize("min_p", [0.01, 0.2, 1.0])
def test_min_p_equals_transformers(min_p: float) -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 3
    expected = MinPLogitsWarper(min_p)(None, logits[None])  # type: ignore[arg-type]
    assert torch.allclose(distribution(logits, Sampling(temperature=1.0, min_p=min_p)), expected[0].softmax(-1))


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_the_repetition_penalty_equals_transformers_and_leaves_placeholders_out(penalty: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    prompt, output = [4, 7, 4, 30], [7, 2]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *output]]), logits[None].clone())
    sampling = Sampling(repetition_penalty=penalty)
    held = Held([-200, *prompt, -200], 50)
    for token in output:
        held.add(token)
    assert torch.equal(penalised(logits, sampling, held), expected[0])
    assert torch.equal(penalised(logits, sampling, Held([-200], 50)), logits)


def test_presence_and_frequency_penalties_are_those_of_openai() -> None:
    """Score minus count times frequency_penalty minus presence_penalty where the count, in the answer, is above 0."""
    logits, output = torch.randn(20, generator=torch.Generator().manual_seed(0)), [3, 5, 3, 3]
    held = Held([5, 9], 20)
    for token in output:
        held.add(token)
    found = penalised(logits, Sampling(presence_penalty=0.5, frequency_penalty=-0.25), held)
    for token in range(20):
        count = output.count(token)
        assert found[token].item() == pytest.approx(logits[token].item() + 0.25 * count - 0.5 * (count > 0))


def test_temperature_zero_is_greedy_and_a_seed_repeats() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert choose(logits, Sampling(), Sampling().generator()) == int(logits.argmax())
    warm = Sampling(temperature=1.0, seed=4)
    first, second = (
        [choose(logits, warm, source) for _ in range(20)] for source in (warm.generator(), warm.generator())
    )
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"seed": 2**63},
        {"seed": -(2**64)},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LlavaError, match=f"{next(iter(wrong))} must be"):
        Sampling(**wrong)  # type: ignore[arg-type]
