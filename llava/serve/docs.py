"""What the OpenAPI document says of answers: the shapes that clients get."""

from typing import Any, Literal

from pydantic import BaseModel

DESCRIPTION = """Questions about pictures and videos, in OpenAI's API.

Send `Authorization: Bearer KEY` where the server has keys. Beyond OpenAI's API: `video_url` parts, `top_k`, `min_p`,
`repetition_penalty`, and `response_format` of type `regex`. The default temperature is 0."""


class ErrorDetail(BaseModel):
    """What went wrong. param: the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorDetail


class FunctionCalled(BaseModel):
    """A function's name, and its arguments in JSON."""

    name: str
    arguments: str


class ToolCalled(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: FunctionCalled


class AnswerMessage(BaseModel):
    """What the model answers."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCalled] | None = None


class TopLogprob(BaseModel):
    """A token, its log probability, and its bytes in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The same with the likeliest tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None


Finish = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class PromptDetails(BaseModel):
    """Of the prompt: tokens that a cache had, tokens of pictures, and pictures encoded and from the cache."""

    cached_tokens: int
    image_tokens: int
    images_encoded: int
    images_cached: int


class UsageBody(BaseModel):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody


class TextLogprobs(BaseModel):
    """Log probabilities of a text's tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextCompletion(BaseModel):
    """How texts go on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageBody


class ModelBody(BaseModel):
    """A model that can be asked for; `loaded` tells whether it is in memory."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    loaded: bool


class ModelList(BaseModel):
    """The models."""

    object: Literal["list"]
    data: list[ModelBody]


class Status(BaseModel):
    """How the server is. active: requests that wait or run."""

    status: str
    active: int = 0


Responses = dict[int | str, dict[str, Any]]


def _ok(model: type[BaseModel], streamed: bool = False) -> Responses:
    answer: dict[str, Any] = {"model": model}
    if streamed:
        said = {"type": "string", "description": "JSON of a part of the answer; of the last event: [DONE]."}
        events = {"type": "object", "properties": {"data": said}, "required": ["data"]}
        answer["content"] = {"text/event-stream": {"schema": events}}
    return {200: answer}


_WHEN = {
    400: "A field is wrong, a picture cannot be read, or the prompt is too long.",
    401: "The key is missing or unknown.",
    403: "The server was called by a name that is not its own.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body, or what it names, is too large.",
    422: "Not used: a wrong field is status 400.",
    429: "A quota is used up, or the server is overloaded; `Retry-After` tells when to come back.",
    503: "There is no memory for the model.",
}
ERRORS: Responses = {status: {"model": ErrorBody, "description": when} for status, when in _WHEN.items()}
CHAT, COMPLETION = _ok(ChatCompletion, streamed=True), _ok(TextCompletion, streamed=True)
MODELS, MODEL, HEALTH = _ok(ModelList), _ok(ModelBody), _ok(Status)
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
