"""/v1/chat/completions: a conversation to requests of the engine, and answers to OpenAI's bodies."""

from collections.abc import Iterator
from dataclasses import dataclass

import anyio
import anyio.to_thread

from llava.assistant import Assistant
from llava.chat.messages import Message, Video, visuals_of
from llava.engine.background import Delta
from llava.engine.grammar import Grammar
from llava.engine.request import Request
from llava.engine.sampling import Sampling, several
from llava.errors import LlavaError
from llava.serve.answers import JSON, Choice, chat_logprobs
from llava.serve.errors import ApiError
from llava.serve.prompts import callable_tools
from llava.serve.schema import (
    ChatRequest,
    Generating,
    JsonFormat,
    NamedTool,
    RegexFormat,
    SchemaFormat,
)
from llava.serve.tools import ToolText, call_grammar

CHARACTERS = 100  # of a prompt for each token of the context: more are refused before they are read
COLDEST = 1e-4  # temperatures below are greedy: logits that are divided by them overflow
PREPARING = anyio.CapacityLimiter(2)  # pictures are decoded by so many threads
VIDEOS = anyio.CapacityLimiter(1)  # and videos, which take long


@dataclass(frozen=True)
class Prepared:
    """What the engine is asked, and where its answers go.

    prompts: the tokens of each; images: how many of them are pictures'. The answers to one prompt are neighbours.
    """

    requests: list[tuple[Request, Sampling]]
    choices: list[Choice]
    prompts: list[int]
    images: int

    @property
    def most_tokens(self) -> int:
        """The most that it can take: prompts once, and answers."""
        return sum(self.prompts) + sum(sampling.max_new_tokens for _, sampling in self.requests)


async def prepare_chat(
    body: ChatRequest, messages: list[Message], assistant: Assistant, answer_tokens: int
) -> Prepared:
    """A conversation as the engine takes it. Raises ApiError, which names the field."""
    context = assistant.model.config.llm.max_positions
    length = sum(len(part) for message in messages for part in message.content if isinstance(part, str))
    if length > CHARACTERS * context:
        raise too_long(f"{length} characters", context, "messages")
    visuals = visuals_of(messages)
    limiter = VIDEOS if any(isinstance(one, Video) for one in visuals) else PREPARING if visuals else None
    request = await anyio.to_thread.run_sync(_request, assistant, messages, body.stops, limiter=limiter)
    images = sum(image.layout.num_tokens for image in request.images)
    if len(request.ids) > context:
        raise too_long(f"{len(request.ids)} tokens ({images} of images)", context, "messages")
    names = {tool.function.name for tool in callable_tools(body)}
    choices = [Choice(ToolText(names, must_call(body)) if names else None) for _ in range(body.n)]
    most = min(body.max_completion_tokens or body.max_tokens or answer_tokens, context - len(request.ids) + 1)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(body, most, logprobs, _grammar(body), assistant)
    return Prepared([(request, one) for one in several(sampling, body.n)], choices, [len(request.ids)], images)


def chat_body(body: ChatRequest, head: JSON, assistant: Assistant, choices: list[Choice], usage: JSON) -> JSON:
    """The answer as a whole."""
    shown = []
    for index, choice in enumerate(choices):
        message: JSON = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": [call.body() for call in choice.calls]}
        scores = chat_logprobs(assistant.processor.tokenizer, choice.ids, choice.scored) if body.logprobs else None
        shown.append({"index": index, "message": message, "logprobs": scores, "finish_reason": choice.reason})
    return {**head, "object": "chat.completion", "choices": shown, "usage": usage}


def chat_chunks(
    body: ChatRequest, head: JSON, assistant: Assistant, index: int, choice: Choice, delta: Delta, text: str
) -> Iterator[JSON]:
    """What a stream shows of a delta."""

    def chunk(content: JSON, reason: str | None = None, scores: JSON | None = None) -> JSON:
        one = {"index": index, "delta": content, "logprobs": scores, "finish_reason": reason}
        return {**head, "object": "chat.completion.chunk", "choices": [one]}

    if len(choice.ids) == len(delta.ids):
        yield chunk({"role": "assistant", "content": "", "refusal": None})
    if text or (body.logprobs and delta.ids):
        scores = chat_logprobs(assistant.processor.tokenizer, delta.ids, delta.scored) if body.logprobs else None
        yield chunk({"content": text}, None, scores)
    if delta.finish:
        calls = [{"index": place, **call.body()} for place, call in enumerate(choice.calls)]
        if calls:
            yield chunk({"tool_calls": calls})
        yield chunk({}, choice.reason)


def sampling_of(
    body: Generating, most: int, logprobs: int | None, grammar: Grammar | None, assistant: Assistant
) -> Sampling:
    """How the answers' tokens are chosen, `most` of each. Raises ApiError."""
    biases = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    size = assistant.model.config.llm.vocab_size
    if any(token >= size for token, _ in biases):
        raise ApiError(400, f"the vocabulary has {size} ids, counted from 0", param="logit_bias")
    if any(not -100 <= value <= 100 for _, value in biases):
        raise ApiError(400, "expected values from -100 to 100", param="logit_bias")
    return Sampling(
        max_new_tokens=most,
        temperature=body.temperature if body.temperature >= COLDEST else 0.0,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=biases,
        logprobs=logprobs,
        grammar=grammar,
    )


def too_long(found: str, context: int, param: str) -> ApiError:
    """The error for a prompt that the context does not hold."""
    message = f"the prompt takes {found}, the model's context holds {context} tokens; send less, or fewer images"
    return ApiError(400, message, code="context_length_exceeded", param=param)


def _request(assistant: Assistant, messages: list[Message], stops: tuple[str, ...]) -> Request:
    try:
        return assistant.request(messages, stops)
    except LlavaError as error:
        raise ApiError(400, str(error), param="messages") from None


def must_call(body: ChatRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def _grammar(body: ChatRequest) -> Grammar | None:
    """What the answer must fit."""
    if must_call(body):
        return call_grammar(callable_tools(body))
    asked = body.response_format
    if isinstance(asked, JsonFormat):
        return Grammar.json({"type": "object"})
    if isinstance(asked, SchemaFormat):
        return Grammar.json(asked.json_schema.schema_)
    return Grammar("regex", asked.pattern) if isinstance(asked, RegexFormat) else None
