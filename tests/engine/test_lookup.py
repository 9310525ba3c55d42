"""Prompt lookup: guesses are what stood there before, and change no answer."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llava
from llava.assistant import Assistant
from llava.chat.messages import Message
from llava.checkpoints.native import Loaded
from llava.decoding import build
from llava.engine.engine import Engine
from llava.engine.lookup import Lookup
from llava.engine.sampling import Sampling
from tests.engine.test_engine import greedy


@given(st.lists(st.integers(-1, 3), max_size=60), st.integers(0, 60))
def test_a_guess_is_what_followed_the_same_three_tokens_last(ids: list[int], cut: int) -> None:
    lookup = Lookup(ids[:cut])
    for token in ids[cut:]:
        lookup.add(token)
    places = [i for i in range(3, len(ids)) if ids[i - 3 : i] == ids[-3:]]
    expected = (ids[places[-1] :] * 4)[:4] if places else []
    if -1 in expected:
        expected = expected[: expected.index(-1)]
    assert lookup.guess() == expected


def test_guesses_grow_when_they_are_right_and_rest_when_they_are_wrong() -> None:
    lookup = Lookup([1, 2, 3] * 10)
    assert len(lookup.guess()) == 4
    lookup.judged(4, 4)
    assert len(lookup.guess()) == 8
    for length in (4, 2, 1):
        lookup.judged(0, 8)
        assert len(lookup.guess()) == length
    lookup.judged(0, 1)
    for token in [1, 2, 3] * 5:
        assert lookup.guess() == []
        lookup.add(token)
    lookup.add(1)
    assert len(lookup.guess()) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 40))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_guesses_right_or_wrong_change_no_answer(
    tiny: Loaded, monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, int]], count: int
) -> None:
    """Guesses of so many tokens, wrong from a place on; the oracle recomputes everything for each token."""
    messages = [Message.user("Say something")]
    expected, turns = greedy(tiny, messages, 50), iter(shapes * 50)
    assistant = Assistant(tiny)
    request = assistant.request(messages)

    def guess(lookup: Lookup) -> list[int]:
        length, right = next(turns)
        known = len(lookup._ids) - len(request.ids)
        return [token if index < right else token + 1 for index, token in enumerate(expected[known : known + length])]

    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "guess", guess)
        generation = assistant._engine.submit(request, Sampling(max_new_tokens=count))
        assert list(assistant._engine.follow(generation)) == expected[:count]
    longer = [*messages, Message.assistant("Well"), Message.user("Go on")]  # what is kept of it is sound
    assert list(assistant._engine.stream(assistant.request(longer), Sampling(5))) == greedy(tiny, longer, 5)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@torch.inference_mode()
def test_the_embedded_model_repeats_a_text_as_without_guesses(precision: str) -> None:
    assistant = llava.load("llava-smol", device="cpu", precision=precision)  # type: ignore[arg-type]
    build.wait()
    text = "Repeat this: The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on."
    request = assistant.request([Message.user(text), Message.assistant(text), Message.user(text)])
    generation = assistant._engine.submit(replace(request, stop_ids=frozenset()), Sampling(max_new_tokens=30))
    assert len(list(assistant._engine.follow(generation))) == 30 and generation.usage.guessed_tokens > 10
    other = Engine(assistant.model, assistant.processor.tokenizer)  # which reads the prompt anew, by the same kernel
    plain = other.submit(replace(request, stop_ids=frozenset()), Sampling(max_new_tokens=30, lookup=False))
    assert list(other.follow(plain)) == generation.output
    if precision.startswith("int"):
        return  # inputs are rounded, in a whole pass perhaps to another of two levels
    model, ids = assistant.model, [*request.ids, *generation.output]
    hidden = model(torch.tensor([ids]), torch.empty(0, model.config.llm.hidden_size))
    assert model.llm.logits(hidden[0, len(request.ids) - 1 : -1]).argmax(-1).tolist() == generation.output
