"""A checkpoint's own chat template, in Jinja, rendered in a sandbox to the same segments as ours.

The template is untrusted: the sandbox denies it every attribute and change of objects, and its time, its output
and what one operation makes of texts and lists are limited.
Source: transformers' `apply_chat_template`, whose environment and variables these are.
"""

import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava.chat.messages import Image, Message
from llava.chat.templates import ImageSlot, Segment, Template, Text, check_turns
from llava.errors import LlavaError

IMAGE, VIDEO = "<image>", "<video>"  # what templates write for a picture and a video
_ESCAPED = {IMAGE: "\ue000", VIDEO: "\ue001"}  # private characters: stand for these words in what the user says
MAX_TEMPLATE, MAX_RENDERED = 100_000, 10_000_000  # characters
MAX_SECONDS = 5.0
_MAX_POWER = 100  # of base and exponent
_MOST_COUNTED = 100_000  # that a width, or a number of things, may be
_WIDE = re.compile(r"\d{6}|%[^a-zA-Z%]*\*|\{[^{}]+\{")  # a large width, or one that comes with the values
# What a template can end in, beside our own errors
_FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError,
)  # fmt: skip


def render_jinja(template: str, messages: Sequence[Message], special: dict[str, str]) -> list[Segment]:
    """A conversation as segments; a generation prompt if the last message is a user's.

    special: `bos_token` and the like, which templates write. Answers are trainable where the conversation up to them
    begins the whole text, as it does in every template of a published model. Raises LlavaError.
    """
    check_turns(messages)
    whole = _render(template, messages, special)
    answers: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            before = _render(template, messages[:index], special)
            after = _render(template, messages[: index + 1], special).rstrip("\n")
            if not (after.startswith(before) and whole.startswith(after)):
                raise LlavaError("this checkpoint's chat template rewrites earlier turns; name a --template instead")
            answers.append((len(before), len(after)))
    cuts = sorted({0, len(whole), *(place for answer in answers for place in answer)})
    visuals = iter([part for message in messages for part in message.content if not isinstance(part, str)])
    segments: list[Segment] = []
    for start, end in itertools.pairwise(cuts):
        trainable = (start, end) in answers
        for piece in _split(whole[start:end]):
            if piece not in (IMAGE, VIDEO):
                segments.append(Text(_unescape(piece), trainable))
                continue
            visual = next(visuals, None)
            if visual is None or isinstance(visual, Image) != (piece == IMAGE):
                raise LlavaError("this checkpoint's chat template places images and videos otherwise than they stand")
            segments.append(ImageSlot(visual))
    if next(visuals, None) is not None:
        raise LlavaError("this checkpoint's chat template leaves out an image or a video")
    return segments


def jinja_of(template: Template, system: str | None) -> str:
    """A template of ours as Jinja, for processors that know no other; images stand before a turn's text."""

    def text(value: str) -> str:
        return "{{ " + json.dumps(value) + " }}" if value else ""

    said = template.system if system is None else system
    parts = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    images = (
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    )
    first = template.before_user if template.first_user is None or not said else template.first_user
    return (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set said = messages[0]['content'][0]['text'] %}{% set messages = messages[1:] %}"
        "{% else %}{% set said = " + json.dumps(said) + " %}{% endif %}"
        "{% if said %}" + text(template.before_system) + "{{ said }}" + text(template.after_system) + "{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% if loop.first %}"
        + text(first)
        + "{% else %}"
        + text(template.before_user)
        + "{% endif %}"
        + images
        + parts
        + text(template.after_user)
        + "{% else %}"
        + text(template.before_answer)
        + parts
        + text(template.after_answer)
        + text(template.between)
        + "{% endif %}{% endfor %}"
    )


def _render(template: str, messages: Sequence[Message], special: dict[str, str]) -> str:
    if len(template) > MAX_TEMPLATE:
        raise LlavaError(f"the chat template is over {MAX_TEMPLATE} characters long")
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    asks = messages[-1].role == "user"
    try:
        compiled = environment.from_string(environment.guarded(template))
        said = [_plain(message) for message in messages]
        text, length = [], 0
        for piece in compiled.generate(messages=said, add_generation_prompt=asks, **special):
            text.append(piece)
            length += len(piece)
            if length > MAX_RENDERED:
                raise LlavaError(f"the chat template renders over {MAX_RENDERED} characters")
    except _FAILURES as error:
        raise LlavaError(f"the chat template fails: {error}") from None
    return "".join(text)


def _sized(value: Any) -> Any:
    """A part of what `~` joins, not too large."""
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_RENDERED:
        raise jinja2.TemplateError("~ makes too much")
    return value


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise jinja2.TemplateError("a width is too large, or not known before")


def _check_counts(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > _MOST_COUNTED for value in values):
        raise jinja2.TemplateError(f"a width or a number is over {_MOST_COUNTED}")


def _check_replaced(text: Any, old: Any, new: Any) -> None:
    if str(text).count(str(old)) * len(str(new)) > MAX_RENDERED:
        raise jinja2.TemplateError("replace makes too much")


def _check_joined(items: Any, between: Any) -> None:
    if isinstance(items, list | tuple):
        length = sum(len(item) for item in items if isinstance(item, str)) + len(items) * len(str(between))
        if length > MAX_RENDERED:
            raise jinja2.TemplateError("join makes too much")


def _check_method(name: str, text: str, values: Sequence[Any]) -> None:
    """Raise where a method of a text would make more of it than one may render."""
    if name in ("format", "format_map"):
        _check_format(text)
    elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_counts(*values)
    elif name == "replace" and len(values) >= 2:
        _check_replaced(text, values[0], values[1])
    elif name == "join" and values:
        _check_joined(values[0], text)


def _check_filter(name: str, value: Any, values: Sequence[Any]) -> None:
    """Raise where a filter would."""
    if name == "format":
        _check_format(str(value))
    elif name == "replace" and len(values) >= 2:
        _check_replaced(value, values[0], values[1])
    elif name == "join":
        _check_joined(value, values[0] if values else "")
    else:
        _check_counts(*values)
        lines = str(value).count("\n") + 1 if name == "indent" else 1
        if sum(abs(count) for count in values if isinstance(count, int)) * lines > MAX_RENDERED:
            raise jinja2.TemplateError(f"{name} makes too much")


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are checked before. Its marks (what Jinja hands to it beside them) stay."""

    @functools.wraps(function)
    def checked(*values: Any, **options: Any) -> Any:
        own = values[1:] if hasattr(function, "jinja_pass_arg") else values  # the first is Jinja's own
        _check_filter(name, own[0], [*own[1:], *options.values()])
        return function(*values, **options)

    return checked


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a deadline, which every loop and call checks, and limits of what one operation makes.

    Strings grow by operators, by `~`, and by methods and filters that take a width or put texts in.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = time.monotonic() + MAX_SECONDS
        self.filters["checked"] = self._checked
        self.filters["sized"] = _sized
        self.globals.pop("lipsum")
        for name in ("center", "indent", "format", "replace", "join", "batch", "slice", "wordwrap"):
            self.filters[name] = _limited(name, self.filters[name])

    def guarded(self, template: str) -> nodes.Template:
        """The parsed template, its loops changed so that they end at the deadline."""
        tree = self.parse(template)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "checked", [], [], None, None)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [nodes.Filter(part, "sized", [], [], None, None) for part in joined.nodes]
        return tree

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        self._check()
        text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # str.format comes wrapped
        if isinstance(text, str):
            _check_method(getattr(function, "__name__", ""), text, [*arguments, *options.values()])
        return super().call(context, function, *arguments, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._check()
        if operator == "%":
            if isinstance(left, str):
                _check_format(left)
        elif isinstance(left, int | float) and isinstance(right, int | float):
            if operator == "**" and max(abs(left), abs(right)) > _MAX_POWER:
                raise jinja2.TemplateError("** makes too much")
            if operator == "*" and abs(left * right) > MAX_RENDERED:
                raise jinja2.TemplateError("* makes too much")
        else:
            sizes = [side if isinstance(side, int) else len(side) for side in (left, right)]
            if (sizes[0] * sizes[1] if operator == "*" else sum(sizes)) > MAX_RENDERED:
                raise jinja2.TemplateError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)

    def _checked(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._check()
            yield item

    def _check(self) -> None:
        if time.monotonic() > self._deadline:
            raise jinja2.TemplateError(f"it takes more than {MAX_SECONDS} seconds")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates of multimodal models know it: its content is a list of parts, for every role."""
    content: list[dict[str, str]] = []
    for part in message.content:
        if isinstance(part, str):
            content.append({"type": "text", "text": _escape(part)})
        else:
            content.append({"type": "image" if isinstance(part, Image) else "video"})
    return {"role": message.role, "content": content}


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what the model says. Here answers are found otherwise."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _escape(text: str) -> str:
    for word, character in _ESCAPED.items():
        text = text.replace(word, character)
    return text


def _unescape(text: str) -> str:
    for word, character in _ESCAPED.items():
        text = text.replace(character, word)
    return text


def _split(text: str) -> list[str]:
    """The text cut at image and video marks, which stay as pieces of their own; nothing empty."""
    return [piece for piece in re.split(f"({IMAGE}|{VIDEO})", text) if piece]
