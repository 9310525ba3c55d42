"""The API as its official client sees it, against a real server with the embedded model."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llava import Image, Message
from llava.engine.sampling import Sampling
from llava.serve import api
from llava.serve.api import Server, ServerLimits
from llava.serve.keys import KeyStore, Quotas
from llava.serve.pool import ModelPool
from tests.serve.conftest import DATA_URL, SHAPE, new_server, serving

COLOUR = "what color is the shape?"
ASKED: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": COLOUR}],
    }
]


@pytest.fixture(scope="module")
def client(served: tuple[str, Server]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served[0] + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_is_that_of_the_model(client: openai.OpenAI, served: tuple[str, Server]) -> None:
    answer = client.chat.completions.create(model="llava-smol", messages=ASKED)
    assistant = served[1].pool.loaded["llava-smol"].assistants["llava-smol"]
    question = [Message.user(Image(SHAPE), COLOUR)]
    ((expected,),) = assistant.answers([question], Sampling())
    assert answer.choices[0].message.content == expected.text == "blue"
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens == len(assistant.request(question).ids)
    assert usage.completion_tokens == len(expected.ids)
    details = usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] == sum(image.layout.num_tokens for image in assistant.request(question).images)


def test_a_stream_gives_the_same_with_usage_and_what_came_from_the_cache(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="llava-smol", messages=ASKED, logprobs=True, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(
            model="llava-smol",
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=2,
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    shown = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in shown) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in shown if choice.finish_reason] == ["stop"]
    scored = [entry for choice in shown if choice.logprobs for entry in choice.logprobs.content or []]
    expected = whole.choices[0].logprobs
    assert expected is not None and expected.content is not None
    assert [entry.token for entry in scored] == [entry.token for entry in expected.content]
    assert [bytes(entry.bytes or []) for entry in scored] == [entry.token.encode() for entry in expected.content]
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob == entry.logprob for entry in scored)
    usage = chunks[-1].usage
    assert usage is not None and usage.prompt_tokens_details is not None and not chunks[-1].choices
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # the last one must run


def test_turns_and_interleaved_pictures(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Answer with one word."},
        *ASKED,
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": [{"type": "text", "text": "And here?"}, ASKED[0]["content"][0]]},
        {"role": "user", "content": COLOUR},
    ]
    answer = client.chat.completions.create(model="llava-smol", messages=messages, max_completion_tokens=4)
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    single = client.chat.completions.create(model="llava-smol", messages=ASKED).usage
    assert single is not None and single.prompt_tokens_details is not None
    image_tokens = single.prompt_tokens_details.model_dump()["image_tokens"]
    assert answer.usage.prompt_tokens_details.model_dump()["image_tokens"] == 2 * image_tokens
    assert answer.usage.completion_tokens <= 4


def test_several_answers_and_seeds(client: openai.OpenAI) -> None:
    def ask(seed: int, n: int) -> list[str]:
        answers = client.completions.create(
            model="llava-smol", prompt="Once upon a time", n=n, temperature=1.5, seed=seed, max_tokens=12
        )
        return [choice.text for choice in answers.choices]

    first = ask(1, 3)
    assert len(set(first)) == 3 and first == ask(1, 3) and first[1:] == ask(2, 2)


def test_stop_bias_and_length(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="llava-smol", prompt="1, 2, 3, 4, 5,", max_tokens=12).choices[0]
    assert whole.finish_reason == "length" and " 7" in whole.text
    cut = client.completions.create(model="llava-smol", prompt="1, 2, 3, 4, 5,", max_tokens=12, stop=[" 7"])
    assert cut.choices[0].text == whole.text[: whole.text.index(" 7")] and cut.choices[0].finish_reason == "stop"
    first = client.completions.create(model="llava-smol", prompt=[[1, 2, 3], [4, 5]], max_tokens=1, logprobs=1)
    assert [choice.index for choice in first.choices] == [0, 1]
    biased = client.completions.create(
        model="llava-smol", prompt="1, 2,", max_tokens=3, logit_bias={"33": 100.0}, echo=True
    )
    assert biased.choices[0].text == "1, 2," + "1" * 3  # the text of id 33


@pytest.mark.parametrize("echo", [True, False])
def test_completions_stream_what_they_give_whole(client: openai.OpenAI, echo: bool) -> None:
    options: dict[str, Any] = {"model": "llava-smol", "prompt": ["One two", "Red green"], "max_tokens": 6, "n": 2}
    options |= {"echo": True} if echo else {"logprobs": 0}
    whole = client.completions.create(**options)
    texts, tokens = [""] * 4, [[], [], [], []]  # type: ignore[var-annotated]
    for chunk in client.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs and choice.logprobs.tokens else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens if choice.logprobs else [] for choice in whole.choices]


def test_answers_fit_a_schema_or_an_expression(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}, "round": {"type": "boolean"}},
        "required": ["color", "round"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="llava-smol",
        messages=ASKED,
        response_format={"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["color"] == "blue" and isinstance(found["round"], bool)
    pattern: Any = {"type": "regex", "pattern": "[0-9]{3}"}
    answer = client.chat.completions.create(model="llava-smol", messages=ASKED, response_format=pattern)
    assert len(answer.choices[0].message.content or "") == 3 and (answer.choices[0].message.content or "").isdigit()


PAINT: Any = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint something.",
        "parameters": {
            "type": "object",
            "properties": {"color": {"enum": ["red", "blue"]}},
            "required": ["color"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_function_that_must_be_called(client: openai.OpenAI, choice: Any) -> None:
    options: dict[str, Any] = {"model": "llava-smol", "messages": ASKED, "tools": [PAINT], "tool_choice": choice}
    answer = client.chat.completions.create(**options).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    call = answer.message.tool_calls[0]
    assert call.function.name == "paint" and json.loads(call.function.arguments)["color"] in ("red", "blue")
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    calls = [one for chunk in chunks for one in chunk.delta.tool_calls or []]
    assert [one.function.arguments for one in calls] == [call.function.arguments]
    told = [*ASKED, answer.message.model_dump(exclude_none=True)]
    told.append({"role": "tool", "tool_call_id": call.id, "content": "It is painted."})
    after = client.chat.completions.create(model="llava-smol", messages=told, tools=[PAINT], tool_choice="none")
    assert after.choices[0].finish_reason in ("stop", "length") and after.choices[0].message.tool_calls is None


def test_the_async_client_asks_at_once(served: tuple[str, Server]) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served[0] + "/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(model="llava-smol", messages=ASKED, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(5)))

    assert asyncio.run(ask()) == ["blue"] * 5


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"extra_body": {"colour": 1}}, "colour"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 200}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [*ASKED, {"role": "system", "content": "x"}]}, "messages[1].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://a/b"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "y"}}}},
            "response_format",
        ),
    ],
)
def test_mistakes_name_the_field(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**{"model": "llava-smol", "messages": ASKED, **wrong})
    assert told.value.param == param and told.value.type == "invalid_request_error"


def test_errors_of_other_classes(client: openai.OpenAI, served: tuple[str, Server]) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert told.value.code == "model_not_found" and told.value.param == "model"
    with pytest.raises(openai.BadRequestError) as told_length:
        client.chat.completions.create(model="llava-smol", messages=[{"role": "user", "content": "word " * 9000}])
    assert told_length.value.code == "context_length_exceeded"
    bad = httpx.post(
        served[0] + "/v1/chat/completions", content=b'{"messages": [', headers={"Content-Type": "application/json"}
    )
    assert bad.status_code == 400 and "not JSON" in bad.json()["error"]["message"]
    assert httpx.get(served[0] + "/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(served[0] + "/v1/chat/completions").status_code == 405


def test_models_health_metrics_and_documentation(client: openai.OpenAI, served: tuple[str, Server]) -> None:
    assert [model.id for model in client.models.list()] == ["llava-smol", "other"]
    assert client.models.retrieve("llava-smol").owned_by == "llava"
    answer = client.chat.completions.create(model="other", messages=ASKED)
    assert answer.choices[0].message.content == "blue" and answer.model == "other"
    assert {"llava-smol", "other"} <= set(served[1].pool.loaded)
    assert httpx.get(served[0] + "/health").json()["status"] == "ok"
    assert httpx.get(served[0] + "/ready").status_code == 200
    text = httpx.get(served[0] + "/metrics").text
    for name in ("waiting", "running", "blocks", "first_token_seconds_bucket", "between_tokens_seconds_bucket"):
        assert f"llava_{name}{{" in text
    assert 'llava_images_total{cache="miss",model="llava-smol"}' in text and "llava_resident_bytes" in text
    assert "/v1/chat/completions" in httpx.get(served[0] + "/openapi.json").json()["paths"]
    assert httpx.get(served[0] + "/health", headers={"Host": "evil.example"}).status_code == 403


@pytest.fixture
def keys(tmp_path: Any) -> KeyStore:
    return KeyStore(tmp_path / "keys.sqlite")


def test_keys_and_quotas(pool: ModelPool, keys: KeyStore) -> None:
    key = keys.create("ann", Quotas(requests_day=3, images_day=2, tokens_day=10_000))
    with serving(new_server(pool, keys)) as address:
        anyone = openai.OpenAI(base_url=address + "/v1", api_key="llava-wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as told:
            anyone.models.list()
        assert told.value.code == "invalid_api_key"
        ann = anyone.with_options(api_key=key)
        answer = ann.chat.completions.create(model="llava-smol", messages=ASKED, max_tokens=5)
        assert answer.usage is not None
        ((_, name, used),) = keys.use(1)
        assert (name, used.requests, used.images, used.tokens) == ("ann", 1, 1, answer.usage.total_tokens)
        with pytest.raises(openai.RateLimitError) as full:
            ann.chat.completions.create(model="llava-smol", messages=ASKED, max_tokens=8000, n=2)
        assert "tokens a day" in str(full.value) and 0 < int(full.value.response.headers["Retry-After"]) <= 86400
        ((_, _, used),) = keys.use(1)
        assert (used.requests, used.images) == (1, 1)  # what was told to come back is not charged
        ann.chat.completions.create(model="llava-smol", messages=ASKED, max_tokens=5)
        with pytest.raises(openai.RateLimitError, match="images a day"):
            ann.chat.completions.create(model="llava-smol", messages=ASKED)
        ann.completions.create(model="llava-smol", prompt="One", max_tokens=2)
        with pytest.raises(openai.RateLimitError, match="requests a day"):
            ann.completions.create(model="llava-smol", prompt="One", max_tokens=2)
        keys.revoke("ann")
        with pytest.raises(openai.AuthenticationError):
            ann.models.list()
        assert httpx.get(address + "/health").status_code == 200


def test_what_was_not_answered_in_time_is_not_charged(pool: ModelPool, keys: KeyStore) -> None:
    key = keys.create("ann", Quotas(requests_day=1))
    with serving(new_server(pool, keys, ServerLimits(first_seconds=0.0))) as address:
        ann = openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0)
        for _ in range(2):
            with pytest.raises(openai.RateLimitError, match="took too long"):
                ann.chat.completions.create(model="llava-smol", messages=ASKED, stream=True)
    ((_, _, used),) = keys.use(1)
    assert (used.requests, used.tokens, used.images) == (0, 0, 0)


def test_whose_tokens_are_used_up_is_refused_before_anything_is_fetched(pool: ModelPool, keys: KeyStore) -> None:
    key = keys.create("ann", Quotas(tokens_day=0))
    picture = {"type": "image_url", "image_url": {"url": "https://127.0.0.1:1/a.png"}}  # fetching it would be an error
    with serving(new_server(pool, keys)) as address:
        ann = openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.RateLimitError, match="tokens a day"):
            ann.chat.completions.create(model="llava-smol", messages=[{"role": "user", "content": [picture]}])  # type: ignore[list-item,misc]


def test_unforeseen_errors_are_counted(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_model", lambda *_: 1 / 0)
    with serving(new_server(pool)) as address:
        assert httpx.get(address + "/v1/models").status_code == 500
        assert 'llava_requests_total{path="/v1/models",status="500"} 1.0' in httpx.get(address + "/metrics").text


def test_more_requests_than_it_holds_are_told_to_come_back(pool: ModelPool) -> None:
    async def ask(address: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=address + "/v1", api_key="none", max_retries=0) as client:
            calls = [client.completions.create(model="llava-smol", prompt="One", max_tokens=20) for _ in range(8)]
            return await asyncio.gather(*calls, return_exceptions=True)

    with serving(new_server(pool, limits=ServerLimits(active=2))) as address:
        results = asyncio.run(ask(address))
    refused = [one for one in results if isinstance(one, openai.RateLimitError)]
    assert 2 <= len(results) - len(refused) < 8 and all(
        not isinstance(one, Exception) for one in results if one not in refused
    )
    assert all(one.code == "server_overloaded" and int(one.response.headers["Retry-After"]) >= 1 for one in refused)
