"""The engine: caches change nothing but the work, a batch answers as its rows alone, limits hold."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.checkpoints.gguf import GgufLlm
from llava.checkpoints.native import Loaded
from llava.engine.request import Request
from llava.engine.sampling import Sampling
from llava.errors import LlavaError
from tests.conftest import tiny_model


def greedy(loaded: Loaded, messages: list[Message], count: int) -> list[int]:
    """Ids by running the whole sequence anew for each token: no cache of any kind."""
    prompt = loaded.processor.prompt(messages)
    views = loaded.processor.views([span.image for span in prompt.spans])
    images = loaded.model.encode(views, [span.layout for span in prompt.spans])
    ids = list(prompt.ids)
    for _ in range(count):
        hidden = loaded.model(torch.tensor([ids]), images)
        ids.append(int(loaded.model.llm.logits(hidden[0, -1]).argmax()))
    return ids[len(prompt.ids) :]


def ids_of(assistant: Assistant, messages: list[Message], count: int) -> list[int]:
    return list(assistant._engine.stream(assistant.request(messages), Sampling(max_new_tokens=count)))


def outputs(assistant: Assistant, requests: list[Request], sampling: Sampling) -> list[list[int]]:
    return [one.output for one in assistant._engine.generate([(one, sampling) for one in requests])]


def test_caches_change_no_answer_over_several_turns(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    first = [Message.user(Image(picture("a.png", seed=1)), "What is this?")]
    second = [*first, Message.assistant("a cat"), Message.user("And this?", Image(picture("b.png", seed=2)))]
    other = [Message.user(Image(picture("c.png", seed=3)), "What is this?")]
    for messages in (first, second, first, other, second):
        assert ids_of(assistant, messages, 6) == greedy(tiny, messages, 6)


def test_a_second_question_reuses_the_picture_and_the_first_turn(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    path = picture("a.png")
    turns = [Message.user(Image(path), "What is this?")]
    answer = assistant.chat(turns, max_new_tokens=4)
    asked = assistant.usage.prompt_tokens
    assert (assistant.usage.reused_tokens, assistant.usage.encoded_images) == (0, 1)
    assistant.chat([*turns, Message.assistant(answer), Message.user("Sure?")], max_new_tokens=4)
    assert assistant.usage.reused_tokens >= asked
    assert assistant.usage.encoded_images == 0
    assistant.chat([Message.user("Look at this:", Image(picture("same.png")))], max_new_tokens=1)
    assert assistant.usage.encoded_images == 0  # equal pixels in another file
    assistant.chat([Message.user(Image(picture("other.png", seed=9)), "What is this?")], max_new_tokens=1)
    assert assistant.usage.encoded_images == 1


def test_a_batch_answers_as_its_rows_alone(tiny: Loaded, picture: Callable[..., Path]) -> None:
    image = Image(picture("a.png"))
    conversations = [
        [Message.user(image, "What?")],
        [Message.user(image, "A much longer question about what is in the picture, really?")],
        [Message.user("No picture at all")],
        [Message.user(image, "Two", Image(picture("b.png", seed=5)))],
    ]
    assistant = Assistant(tiny)
    requests = [assistant.request(messages) for messages in conversations]
    together = outputs(assistant, requests, Sampling(max_new_tokens=8))
    assert together == [greedy(tiny, messages, 8) for messages in conversations]
    shared = assistant._engine.generate([(one, Sampling(max_new_tokens=8)) for one in requests[:2]])
    assert [one.output for one in shared] == together[:2]
    assert all(one.usage.reused_tokens > 0 for one in shared)
    assert assistant._engine.generate([]) == []


def test_a_batch_with_a_seed_samples_as_the_single_request(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    request = assistant.request([Message.user("Say something")])
    sampling = Sampling(max_new_tokens=10, temperature=1.5, top_k=50, top_p=0.9, seed=3)
    alone = list(assistant._engine.stream(request, sampling))
    assert outputs(assistant, [request, request], sampling) == [alone, alone]


def test_an_abandoned_answer_leaves_the_engine_sound(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    messages = [Message.user(Image(picture("a.png")), "What is this?")]
    stream = assistant._engine.stream(assistant.request(messages), Sampling(max_new_tokens=9))
    next(stream)
    next(stream)
    stream.close()
    longer = [*messages, Message.assistant("something"), Message.user("else")]
    assert ids_of(assistant, longer, 5) == greedy(tiny, longer, 5)


def test_generation_ends_at_the_end_of_the_context(smollm2: GgufLlm) -> None:
    loaded = tiny_model(smollm2)
    assistant = Assistant(loaded)
    messages = [Message.user("word " * 480)]
    length = len(loaded.processor.prompt(messages).ids)
    room = loaded.model.config.llm.max_positions - length
    assert 0 < room < 40
    assert len(ids_of(assistant, messages, 100)) == room + 1  # the last token is chosen but not run
    requests = [assistant.request(messages)]
    assert len(outputs(assistant, requests, Sampling(max_new_tokens=100))[0]) == room + 1


def test_a_prompt_beyond_the_context_is_refused(tiny: Loaded) -> None:
    with pytest.raises(LlavaError, match="context holds 512"):
        Assistant(tiny).chat([Message.user("word " * 600)])


def test_stop_strings_end_an_answer(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    messages = [Message.user("Say something")]
    whole = assistant.chat(messages, max_new_tokens=12)
    stop = whole[len(whole) // 2 :][:3]
    assert len(stop) == 3
    assert assistant.chat(messages, max_new_tokens=12, stop=[stop]) == whole[: whole.find(stop)].strip()
    assert "".join(assistant.stream(messages, max_new_tokens=12)).strip() == whole


def test_a_model_that_computes_in_half_precision_runs_through(smollm2: GgufLlm, picture: Callable[..., Path]) -> None:
    """As on a GPU: every tensor on the way has the model's type. (Here on the CPU, where it is only slow.)"""
    loaded = tiny_model(smollm2)
    loaded.model.to(torch.bfloat16)
    assistant = Assistant(loaded)
    messages = [Message.user(Image(picture("a.png")), "What is this?")]
    assert assistant._engine.scheduler._dtype == torch.bfloat16
    first = ids_of(assistant, messages, 4)
    assert len(first) == 4
    assert ids_of(assistant, [*messages, Message.assistant("a cat"), Message.user("Sure?")], 3)


def test_a_stop_string_ends_the_work_too(tiny: Loaded) -> None:
    assistant = Assistant(tiny)
    messages = [Message.user("Say something")]
    whole = assistant.chat(messages, max_new_tokens=40)
    stop = whole[len(whole) // 4 :][:3]
    ((answer,),) = assistant.answers([messages], Sampling(max_new_tokens=40), stop=[stop])
    assert answer.text == whole[: whole.find(stop)].strip()
    assert answer.finish == "stop" and len(answer.ids) < 40
    assert assistant.usage.answer_tokens == len(answer.ids)


@torch.inference_mode()
def test_log_probabilities_are_those_of_the_whole_sequence(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    request = assistant.request([Message.user(Image(picture("a.png")), "What is this?")])
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=1, logprobs=3)
    (one,) = assistant._engine.generate([(request, sampling)])
    images = tiny.model.encode(request.images[0].views(), [request.images[0].layout])
    hidden = tiny.model(torch.tensor([[*request.ids, *one.output]]), images)[0, len(request.ids) - 1 : -1]
    expected = tiny.model.llm.logits(hidden).log_softmax(-1)
    assert len(one.scored) == len(one.output) == 6
    for token, row, scored in zip(one.output, expected, one.scored, strict=True):
        assert scored.logprob == pytest.approx(float(row[token]), abs=1e-4)
        top = row.topk(3)
        assert [index for index, _ in scored.top] == top.indices.tolist()
        assert [value for _, value in scored.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_n_answers_share_the_prompt_and_differ_by_their_seeds(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    messages = [Message.user(Image(picture("a.png")), "Say something " * 40)]
    sampling = Sampling(max_new_tokens=6, temperature=1.5, seed=7)
    ((*several,),) = assistant.answers([messages], sampling, n=3)
    assert len({answer.text for answer in several}) == 3
    assert several[1].ids == list(
        assistant._engine.stream(assistant.request(messages), Sampling(max_new_tokens=6, temperature=1.5, seed=8))
    )
    prompt = several[0].usage.prompt_tokens
    assert [answer.usage.reused_tokens for answer in several] == [0, prompt - 1, prompt - 1]
    with pytest.raises(LlavaError, match="n must be at least 1"):
        assistant.answers([messages], sampling, n=0)


def test_pictures_that_are_known_are_reported(tiny: Loaded, picture: Callable[..., Path]) -> None:
    assistant = Assistant(tiny)
    image = Image(picture("a.png"))
    assistant.chat([Message.user(image, "What?")], max_new_tokens=1)
    assert (assistant.usage.encoded_images, assistant.usage.reused_images) == (1, 0)
    elsewhere = [Message.user("Hello"), Message.assistant("Hi")]
    assistant.chat([*elsewhere, Message.user(image, "What?")], max_new_tokens=1)
    assert (assistant.usage.encoded_images, assistant.usage.reused_images) == (0, 1)
    assistant.chat([*elsewhere, Message.user(image, "What now?")], max_new_tokens=1)
    assert (assistant.usage.encoded_images, assistant.usage.reused_images) == (0, 0)  # its keys and values were there


def test_a_request_that_fails_while_it_is_answered_ends_alone(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = Assistant(tiny)
    request, engine = assistant.request([Message.user("Say something")]), assistant._engine

    def fail(*_: object) -> int:
        raise ValueError("no number")

    with monkeypatch.context() as patch:
        patch.setattr("llava.engine.engine.choose", fail)
        pair = [engine.submit(request, Sampling(8, temperature=t)) for t in (1.0, 0.0)]
        while engine.busy:
            engine.step()
    assert pair[0].finished == "error" and "no token could be chosen: no number" in str(pair[0].error)
    assert pair[1].output == greedy(tiny, [Message.user("Say something")], 8)
