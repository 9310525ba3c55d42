"""A checkpoint's own chat template, in Jinja, rendered in a sandbox to the same segments as ours.

The template is untrusted: the sandbox denies it every attribute and change of objects, and its time, its output
and what one operation makes of texts and lists are limited.
Source: transformers' `apply_chat_template`, whose environment and variables these are.
"""

import functools
import inspect
import itertools
import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llava.chat.messages import Image, Message
from llava.chat.templates import ImageSlot, Segment, Template, Text, check_turns
from llava.errors import LlavaError

IMAGE, VIDEO = "<image>", "<video>"  # what templates write for a picture and a video
_ESCAPED = {IMAGE: "\ue000", VIDEO: "\ue001"}  # private characters: stand for these words in what the user says
MAX_TEMPLATE, MAX_RENDERED = 100_000, 10_000_000  # characters
MAX_SECONDS = 5.0
_MAX_POWER = 100  # of base and exponent
_MOST_INDENT = 8
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
    render = _renderer(template, special)
    whole = render(messages)
    answers: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            before, after = render(messages[:index]), render(messages[: index + 1]).rstrip("\n")
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


def _renderer(template: str, special: dict[str, str]) -> Callable[[Sequence[Message]], str]:
    """What renders a conversation; all its calls together have MAX_SECONDS from now on."""
    if len(template) > MAX_TEMPLATE:
        raise LlavaError(f"the chat template is over {MAX_TEMPLATE} characters long")
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], finalize=_sized
    )
    environment.globals["raise_exception"] = _raise
    try:
        compiled = environment.from_string(environment.guarded(template))
    except _FAILURES as error:
        raise LlavaError(f"the chat template fails: {error}") from None

    def render(messages: Sequence[Message]) -> str:
        asks = messages[-1].role == "user"
        text, length = [], 0
        try:
            said = [_plain(message) for message in messages]
            for piece in compiled.generate(messages=said, add_generation_prompt=asks, **special):
                text.append(piece)
                length += len(piece)
                if length > MAX_RENDERED:
                    raise LlavaError(f"the chat template renders over {MAX_RENDERED} characters")
        except _FAILURES as error:
            raise LlavaError(f"the chat template fails: {error}") from None
        return "".join(text)

    return render


def _size(value: Any, most: int = MAX_RENDERED) -> int:
    """About how many characters a value is as text; what holds itself many times is not counted beyond `most`."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, dict | list | tuple | set):
        return 16
    total = 2
    for item in itertools.chain(value.keys(), value.values()) if isinstance(value, dict) else value:
        total += 2 + _size(item, most - total)
        if total > most:
            break
    return total


def _sized(value: Any) -> Any:
    """A value that is not too large as text: what is printed, compared, or joined by `~`."""
    if _size(value) > MAX_RENDERED:
        raise jinja2.TemplateError("a value makes too much text")
    return value


def _check_format(text: str, values: Iterable[Any]) -> None:
    if _WIDE.search(text):
        raise jinja2.TemplateError("a width is too large, or not known before")
    widths = [int(width) for width in re.findall(r"\d+", text)]
    _check_product("a format", text.count("%") + text.count("{"), max([0, *widths, *map(_size, values)]))


def _check_counts(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > _MOST_COUNTED for value in values):
        raise jinja2.TemplateError(f"a width or a number is over {_MOST_COUNTED}")


def _check_product(name: str, times: int, each: Any) -> None:
    """each: a text, or how many characters it has."""
    size = each if isinstance(each, int) else len(str(each))
    if times * abs(size) > MAX_RENDERED:
        raise jinja2.TemplateError(f"{name} makes too much")


def _check_method(name: str, text: str, values: Sequence[Any]) -> None:
    """Raise where a method of a text is none that templates need, or would make more of it than one may render."""
    if name not in _METHODS and not name.startswith("is"):
        raise jinja2.TemplateError(f"a text's method {name} is not for templates")
    for value in values:
        _sized(value)
    if name in ("format", "format_map"):
        _check_format(text, values)
    elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_counts(*values)
        _check_product(name, text.count("\t") + 1, max([8, *(value for value in values if isinstance(value, int))]))
    elif name == "replace" and len(values) >= 2:
        _check_product(name, text.count(str(values[0])), values[1])
    elif name == "join" and values:
        _check_product(name, len(values[0]), text)


_METHODS = {
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map", "index",
    "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
    "upper", "zfill",
}  # fmt: skip


def _check_filter(name: str, given: dict[str, Any]) -> None:
    """Raise where a filter would make more than one may render. given: its arguments by name, the value first."""
    value, *others = given.values()
    if name == "format":
        _check_format(str(value), [*given["args"], *given["kwargs"].values()])
    elif name == "replace":
        _check_product(name, str(value).count(str(given["old"])), given["new"])
    elif name == "join":
        _check_product(name, len(value) if isinstance(value, list | tuple | str | dict) else 1, given["d"])
    elif name == "indent":
        _check_product(name, str(value).count("\n") + 1, given["width"])
    elif name == "wordwrap":
        _check_product(name, len(str(value)), given["wrapstring"] or "")
    elif name == "round" and abs(given["precision"]) > _MAX_POWER:
        raise jinja2.TemplateError("round: too many digits")
    elif name in ("center", "batch", "slice", "truncate"):
        _check_counts(*others)


@functools.cache  # each rendering makes an environment, of some fifty filters
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """What a filter takes of a template: all but what Jinja hands to it beside that. None where it does not say."""
    inner = inspect.unwrap(function)
    try:
        parameters = list(inspect.signature(inner).parameters.values())
    except ValueError:  # written in C
        return None
    return inspect.Signature(parameters[int(hasattr(inner, "jinja_pass_arg")) :])


def _listed(value: Any) -> Any:
    """What other filters give piece by piece, as a list: its size is known then."""
    if not isinstance(value, Iterator | ItemsView | KeysView | ValuesView | range) or isinstance(value, LoopContext):
        return value
    found, size = [], 0
    for item in value:
        found.append(item)
        size += _size(item)
        if size > MAX_RENDERED or len(found) > _MOST_COUNTED:
            raise jinja2.TemplateError("a value makes too much text")
    return found


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = False) -> str:
    """transformers' filter `tojson`, but for its `separators`."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MOST_INDENT):
        raise jinja2.TemplateError(f"tojson: expected an indent of at most {_MOST_INDENT}")
    if indent and _size(value) > _MOST_COUNTED:
        raise jinja2.TemplateError("tojson makes too much")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a deadline, which every loop and call checks, and limits of what one operation makes.

    Strings grow by operators, by `~`, and by methods and filters that take a width or put texts in.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = time.monotonic() + MAX_SECONDS
        self.globals.pop("lipsum")
        self.filters["tojson"] = _to_json
        for name in ("urlize", "xmlattr"):  # of no use here, and their arguments come many times
            del self.filters[name]
        self.filters = {name: self._limited(name, function) for name, function in self.filters.items()}
        self.filters |= {"checked": self._checked, "sized": _sized}

    def guarded(self, template: str) -> nodes.Template:
        """The parsed template, its loops changed so that they end at the deadline."""
        tree = self.parse(template)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "checked", [], [], None, None)
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_guarded(part) for part in joined.nodes]
        for compared in tree.find_all(nodes.Compare):
            compared.expr = _guarded(compared.expr)
            for operand in compared.ops:
                operand.expr = _guarded(operand.expr)
        return tree

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        self._check()
        own = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # str.format comes wrapped
        if isinstance(own, str):
            arguments = tuple(_listed(value) for value in arguments)
            _check_method(getattr(function, "__name__", ""), own, [*arguments, *options.values()])
        elif isinstance(own, bytes | int | float):
            raise jinja2.TemplateError("methods of numbers and bytes are not for templates")
        return super().call(context, function, *arguments, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._check()
        if operator == "%":
            if isinstance(left, str):
                _check_format(left, [right])
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

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose arguments are checked before. Its marks (what Jinja hands to it beside them) stay."""
        signature, first = _signature(function), int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def limited(*values: Any, **options: Any) -> Any:
            self._check()
            own = [_listed(value) for value in values[first:]]
            for one in (*own, *options.values()):
                _sized(one)
            if signature is not None:
                bound = signature.bind(*own, **options)
                bound.apply_defaults()
                _check_filter(name, bound.arguments)
            return function(*values[:first], *own, **options)

        return limited

    def _checked(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._check()
            yield item

    def _check(self) -> None:
        if time.monotonic() > self._deadline:
            raise jinja2.TemplateError(f"it takes more than {MAX_SECONDS} seconds")


def _guarded(value: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, "sized", [], [], None, None)


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
