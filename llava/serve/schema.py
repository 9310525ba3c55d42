"""What clients send: the part of OpenAI's API that is served, and what it is extended by (top_k, min_p, videos, ...).

A field that is not known is an error, not silence. Fields that change nothing here (`user`, `metadata`, ...) are
accepted and left alone. Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_ANSWERS = 16  # of one request
MAX_MESSAGES = 2000
MAX_DEPTH = 100  # of objects and lists in each other
MAX_PROMPTS = 64


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """Where a picture is: a data URL (base64), or one of http or https. detail: accepted, without effect."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Strict):
    """Where a video is, as of a picture; and how many of its frames are seen, evenly spread or `fps` a second."""

    url: str
    frames: int | None = Field(None, ge=1)
    fps: float | None = Field(None, gt=0, le=1000)


class VideoPart(Strict):
    """A video."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1)]
TextParts = Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Strict):
    """Instructions, before all else."""

    role: Literal["system", "developer"]
    content: str | TextParts
    name: str | None = None


class UserMessage(Strict):
    """What the user says: text, or text, pictures and videos in any order."""

    role: Literal["user"]
    content: str | Parts
    name: str | None = None


class FunctionCall(Strict):
    """A call of a function; arguments is JSON."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Strict):
    """What the model answered before. What OpenAI's own answers hold beside it is accepted."""

    role: Literal["assistant"]
    content: str | TextParts | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Strict):
    """What a called function gave."""

    role: Literal["tool"]
    content: str | TextParts
    tool_call_id: str


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Strict):
    """A function that the model may call; parameters is a JSON schema."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool of type function."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Strict):
    """A JSON schema that the answer must fit."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    """Text that fits a regular expression (of Rust's kind) as a whole. Not in OpenAI's API."""

    type: Literal["regex"]
    pattern: str


Format = Annotated[TextFormat | JsonFormat | SchemaFormat | RegexFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    """include_usage: a last chunk tells what the answer took."""

    include_usage: bool = False
    include_obfuscation: bool = False


Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _check_text(values: Any) -> None:
    """Raise ValueError for half of a surrogate pair, which JSON can escape and UTF-8 not write, and for great depth."""
    left = [(values, 0)]
    while left:
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"the body has objects and lists in each other over {MAX_DEPTH} deep")
        if isinstance(value, dict):
            left += [(part, depth + 1) for part in (*value, *value.values())]
        elif isinstance(value, list):
            left += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("the body holds half of a surrogate pair (\\ud800 to \\udfff)") from None


class Generating(Strict):
    """What both kinds of request can say about how an answer is made. temperature 0, the default, is greedy."""

    model: str | None = Field(None, description="A name of /v1/models; by default the first.")
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="Sample from this many tokens; 0 is all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Cut tokens less likely than this part of the likeliest.")
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], float] | None = Field(
        None, max_length=1024
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        _check_text(values)
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Generating):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Format | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValueError("tools: two functions have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: no function '{self.tool_choice.function.name}' in tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: required, but there are no tools")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        return self


Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(Generating):
    """The body of /v1/completions: plain text (or ids) goes on."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = Field(False, description="Begin each answer with its prompt.")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]
