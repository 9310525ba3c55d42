"""How a conversation is written for each family of models: templates as data, rendered to segments.

Source: haotian-liu/LLaVA llava/conversation.py and train.py (`preprocess_*`), whose prompts and labels are the oracle
(tests/chat/test_templates.py). The generation prompt is always the beginning of what training renders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava.chat.messages import Message, Visual
from llava.errors import LlavaError


@dataclass(frozen=True)
class Text:
    """A stretch of text; `trainable` where the model is to learn to say it."""

    text: str
    trainable: bool = False


@dataclass(frozen=True)
class ImageSlot:
    """The place of an image or a video."""

    image: Visual


Segment = Text | ImageSlot


@dataclass(frozen=True)
class Template:
    """How one family writes a conversation. The strings are only ever joined; nothing in them is interpreted.

    before_system, after_system: stand around the system text, and are left out with it.
    before_user, after_user: around each user turn. `after_user` ends the generation prompt.
    before_answer, after_answer: around each answer; both are supervised, the latter ends generation.
    between: after each answer, not supervised.
    first_user: replaces `before_user` in the first turn, where given.
    prompt_is_dropped: the user's text is left out, only its images stay (stage 1).
    """

    name: str
    system: str = ""
    before_system: str = ""
    after_system: str = ""
    before_user: str = ""
    after_user: str = ""
    before_answer: str = ""
    after_answer: str = ""
    between: str = ""
    first_user: str | None = None
    prompt_is_dropped: bool = False


_CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)

_VICUNA = Template(
    "vicuna_v1",
    system=_CURIOUS.format("user"),
    after_system=" ",
    before_user="USER: ",
    after_user=" ASSISTANT:",
    before_answer=" ",
    after_answer="</s>",
)

_CHATML = Template(
    "chatml",
    system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    before_system="<|im_start|>system\n",
    after_system="<|im_end|>\n",
    before_user="<|im_start|>user\n",
    after_user="<|im_end|>\n<|im_start|>assistant\n",
    after_answer="<|im_end|>",
    between="\n",
)

_CHATML_TIGHT = replace(  # ChatML without its line breaks: how the original's MPT style joins turns
    _CHATML,
    name="chatml_direct",
    system="Answer the questions.",
    after_system="<|im_end|>",
    after_user="<|im_end|><|im_start|>assistant\n",
    between="",
)

_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)

_LLAMA_2 = Template(
    "llava_llama_2",
    system=_LANGUAGE_AND_VISION,
    before_system="[INST] <<SYS>>\n",
    after_system="\n<</SYS>>\n\n",
    before_user="<s>[INST] ",
    first_user="",
    after_user=" [/INST]",
    before_answer=" ",
    after_answer=" </s>",
)

JINJA = "jinja"  # in place of a name: the checkpoint's own template (llava.chat.jinja)

TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", after_answer="\n", prompt_is_dropped=True),
        _CHATML,
        replace(_CHATML, name="qwen_1_5", system="You are a helpful assistant."),
        replace(_CHATML, name="qwen_2", system="You are a helpful assistant."),
        _CHATML_TIGHT,
        replace(
            _CHATML_TIGHT,
            name="mpt",
            system="A conversation between a user and an LLM-based AI assistant. "
            "The assistant gives helpful and honest answers.",
        ),
        _VICUNA,
        replace(_VICUNA, name="llava_v1", system=_CURIOUS.format("human")),
        Template(
            "llava_v0",
            system=_CURIOUS.format("human"),
            after_system="###",
            before_user="Human: ",
            after_user="###Assistant:",
            before_answer=" ",
            after_answer="###",
        ),
        _LLAMA_2,
        replace(_LLAMA_2, name="mistral_instruct", system="", before_user="[INST] ", first_user="[INST] "),
        Template(
            "llava_llama_3",
            system=_LANGUAGE_AND_VISION,
            before_system="<|start_header_id|>system<|end_header_id|>\n\n",
            after_system="<|eot_id|>",
            before_user="<|start_header_id|>user<|end_header_id|>\n\n",
            after_user="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            after_answer="<|eot_id|>",
        ),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`. Raises LlavaError that lists the choices."""
    if name not in TEMPLATES:
        raise LlavaError(f"unknown template '{name}'; choose one of: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def render(
    template: Template, messages: Sequence[Message], system: str | None = None, images_first: bool = False
) -> list[Segment]:
    """A conversation as segments. If the last message is a user's, the result is a generation prompt.

    system: replaces the template's system text, unless the conversation brings a system message of its own.
    images_first: moves the images of each turn before its text, each followed by a newline.
    Raises LlavaError when the turns do not alternate between user and assistant.
    """
    check_turns(messages)
    turns = list(messages)
    if turns[0].role == "system":
        system = "".join(_plain_text(turns.pop(0)))
    segments: list[Segment] = []
    system = template.system if system is None else system
    if system and not template.prompt_is_dropped:
        segments.append(Text(template.before_system + system + template.after_system))
    for index, turn in enumerate(turns):
        if turn.role == "user":
            first = template.first_user if index == 0 and system else None
            segments.append(Text(template.before_user if first is None else first))
            segments += _user_content(turn, template.prompt_is_dropped, images_first)
            segments.append(Text(template.after_user))
        else:
            answer = template.before_answer + _plain_text(turn) + template.after_answer
            segments += [Text(answer, trainable=True), Text(template.between)]
    return [segment for segment in segments if segment != Text("") and segment != Text("", trainable=True)]


def check_turns(messages: Sequence[Message]) -> None:
    """Raise LlavaError unless user and assistant take turns, a user first, perhaps after a system message."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise LlavaError(
            f"a conversation is turns of user and assistant, a user first (and a system message before them, if any); "
            f"found: {', '.join(roles) or 'no message'}"
        )


def _user_content(turn: Message, only_images: bool, images_first: bool) -> list[Segment]:
    images: list[Segment] = [ImageSlot(part) for part in turn.content if not isinstance(part, str)]
    if only_images:
        return images
    if not images_first or not images:
        return [Text(part) if isinstance(part, str) else ImageSlot(part) for part in turn.content]
    text = "".join(part for part in turn.content if isinstance(part, str)).strip()
    lines = [*images, Text(text)] if text else images
    return [item for line in lines for item in (Text("\n"), line)][1:]


def _plain_text(message: Message) -> str:
    if not all(isinstance(part, str) for part in message.content):
        raise LlavaError(f"a {message.role} message holds text only; images and videos go into user messages")
    return "".join(str(part) for part in message.content)
