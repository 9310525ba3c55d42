"""Templates against the outputs of the original implementation (tests/oracles), id by id."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llava.chat import jinja
from llava.chat.jinja import render_jinja
from llava.chat.messages import Image, Message
from llava.chat.templates import TEMPLATES, ImageSlot, Text, get_template, render
from llava.checkpoints.gguf import GgufLlm
from llava.config import ImageConfig
from llava.errors import LlavaError
from llava.processor import IGNORE, Processor
from llava.tokenizer import SentencePieceTokenizer
from tests.conftest import tiny_model

ORACLES = Path(__file__).parents[1] / "oracles"
SENTENCEPIECE = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
ORIGINALS = ["llava_v0", "llava_v1", "vicuna_v1", "llava_llama_2", "mistral_instruct", "chatml_direct", "mpt"]
NEXT = ["qwen_1_5", "qwen_2", "chatml_direct", "mistral_instruct", "vicuna_v1"]
ROLES: dict[str, Any] = {"human": "user", "gpt": "assistant"}


def oracle(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ORACLES / name).read_text(encoding="utf-8"))
    return [row for row in rows if row["template"] in TEMPLATES]


def messages(conversation: list[list[str]]) -> list[Message]:
    turns = []
    for speaker, text in conversation:
        first, *others = text.split("<image>")
        content = [first, *(part for other in others for part in (Image("not opened.png"), other))]
        turns.append(Message(ROLES[speaker], tuple(part for part in content if part != "")))
    return turns


def processor(template: str, legacy: bool, images_first: bool) -> Processor:
    tokenizer = SentencePieceTokenizer(SENTENCEPIECE, legacy)
    return Processor(tokenizer, ImageConfig(size=336), None, 1, template, None, images_first)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ORIGINALS)
def test_prompts_and_ids_equal_the_originals(name: str, legacy: bool) -> None:
    rows = [row for row in oracle("prompts.json") if row["template"] == name]
    ours = processor(name, legacy, images_first=False)
    for row in rows:
        turns = messages(row["conversation"])
        text = "".join("<image>" if isinstance(s, ImageSlot) else s.text for s in ours.segments(turns))
        bos = "<s>" if name == "llava_llama_2" else ""
        assert text == row["prompt"].removeprefix(bos)
        assert ours.prompt(turns, [(1, 1)] * 9).ids == row[f"ids_legacy_{str(legacy).lower()}"]
    assert len(rows) == 30


@pytest.mark.parametrize("name", NEXT)
def test_prompts_equal_llava_nexts(name: str) -> None:
    rows = [row for row in oracle("prompts_next.json") if row["template"] == name]
    for row in rows:
        segments = render(get_template(name), messages(row["conversation"]))
        assert "".join("<image>" if isinstance(s, ImageSlot) else s.text for s in segments) == row["prompt"]
    assert len(rows) == 30


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "llava_llama_2"])
def test_training_ids_and_labels_equal_the_originals(name: str, legacy: bool) -> None:
    rows = [row for row in oracle("labels.json") if row["template"] == name and row["legacy"] == legacy]
    ours = processor(name, legacy, images_first=True)
    for row in rows:
        prompt = ours.prompt(messages(row["conversation"]), [(1, 1)] * 9)
        assert prompt.ids == row["input_ids"]
        assert prompt.labels == row["labels"]
    assert len(rows) == (3 if name == "plain" else 30)


def test_chatml_equals_the_template_in_the_gguf(smollm2: GgufLlm) -> None:
    turns = [Message.user("Hi there"), Message.assistant("Hello!"), Message.user("What is 3 + 4?")]
    plain = [{"role": turn.role, "content": turn.content[0]} for turn in turns]
    (expected,), _ = render_jinja_template([plain], chat_template=smollm2.chat_template, add_generation_prompt=True)
    assert "".join(s.text for s in render(get_template("chatml"), turns) if isinstance(s, Text)) == expected


def test_llava_llama_3_equals_llama_3s_published_template() -> None:
    jinja = (  # of Meta's Llama-3-8B-Instruct; its begin-of-text token is the tokenizer's, not the template's
        "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
        "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    template = get_template("llava_llama_3")
    turns = [Message.user("Hi there"), Message.assistant("Hello!"), Message.user("What is 3 + 4?")]
    plain = [{"role": turn.role, "content": turn.content[0]} for turn in (Message.system(template.system), *turns)]
    (expected,), _ = render_jinja_template([plain], chat_template=jinja)
    assert "".join(s.text for s in render(template, turns) if isinstance(s, Text)) == expected


# Not llava_llama_3: its "\n\n" before an answer is one token for Llama 3's tokenizer only.
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("plain", "llava_llama_3")])
def test_the_generation_prompt_is_the_beginning_of_what_is_trained(name: str, smollm2: GgufLlm) -> None:
    ours = Processor(smollm2.tokenizer, ImageConfig(size=28), None, 4, name, None, True)
    question, answer = Message.user(Image("x.png"), "What is it?"), Message.assistant("A cat.")
    asked, trained = ours.prompt([question], [(1, 1)]), ours.prompt([question, answer], [(1, 1)])
    assert trained.ids[: len(asked.ids)] == asked.ids
    assert all(label == IGNORE for label in trained.labels[: len(asked.ids)])
    supervised = [label for label in trained.labels if label != IGNORE]
    text = ours.tokenizer.decode(supervised, keep_special=True)
    assert text == get_template(name).before_answer + "A cat." + get_template(name).after_answer


def test_interleaved_images_keep_their_order() -> None:
    a, b = Image("a.png"), Image("b.png")
    message = Message.user("first ", a, " then ", b, " which?")
    inline = [s.image if isinstance(s, ImageSlot) else s.text for s in render(get_template("vicuna_v1"), [message], "")]
    assert inline == ["USER: ", "first ", a, " then ", b, " which?", " ASSISTANT:"]
    first = render(get_template("vicuna_v1"), [message], "", images_first=True)
    moved = [s.image if isinstance(s, ImageSlot) else s.text for s in first]
    assert moved == ["USER: ", a, "\n", b, "\n", "first  then  which?", " ASSISTANT:"]


def test_a_system_message_replaces_the_templates(smollm2: GgufLlm) -> None:
    segments = render(get_template("chatml"), [Message.system("Be brief."), Message.user("Hi")], system="never this")
    assert segments[0] == Text("<|im_start|>system\nBe brief.<|im_end|>\n")


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [Message.assistant("Hi")],
        [Message.user("a"), Message.user("b")],
        [Message.user("a"), Message.system("b")],
        [Message.system("a")],
        [Message.user("a"), Message("assistant", (Image("x.png"),))],
    ],
)
def test_a_conversation_that_does_not_alternate_is_refused(turns: list[Message]) -> None:
    with pytest.raises(LlavaError, match=r"turns of user and assistant|holds text only"):
        render(get_template("chatml"), turns)


def test_an_unknown_template_lists_the_choices() -> None:
    with pytest.raises(LlavaError, match="choose one of: plain, chatml, qwen_1_5"):
        get_template("vicuna")


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(30) }}", "takes more than|recursion"),
        ("{{ 'a' * 10 ** 9 }}", "makes too much"),
        ("{{ 10 ** 10 ** 10 }}", "makes too much"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "renders over 10000000 characters"),
        ("{{ 'a'|center(9999999999) }}", "width"),
        ("{{ 'a'.ljust(9999999999) }}", "width"),
        ("{{ '%9999999999d' % 1 }}", "width"),
        ("{{ '%*d' % (9999999999, 1) }}", "width"),
        ("{{ '{:>9999999999}'.format('a') }}", "width"),
        ("{{ '%9999999999d'|format(1) }}", "width"),
        ("{{ '{0:>{1}}'.format('a', '9999999999') }}", "width"),
        ("{{ '{a:>{b}}'.format_map({'a': 'x', 'b': 9999999999}) }}", "width"),
        ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", "replace makes too much"),
        ("{{ ('a' * 100000)|replace('a', 'b' * 100000) }}", "replace makes too much"),
        ("{{ (['b' * 100000] * 100000)|join }}", "makes too much"),
        ("{{ ''.join(['b' * 100000] * 100000) }}", "makes too much"),
        ("{{ range(100000)|join('x' * 1000000) }}", "join makes too much"),
        ("{{ ('a' * 100000)|join('x' * 1000000) }}", "join makes too much"),
        ("{{ ('x' * 1000000).join('a' * 100000) }}", "join makes too much"),
        ("{{ 'a'|indent(first=true, width=9999999999) }}", "indent makes too much"),
        ("{{ ('a' * 100000)|replace(new='b' * 100000, old='a') }}", "replace makes too much"),
        ("{{ ('a' * 100000)|join(attribute=none, d='x' * 1000000) }}", "join makes too much"),
        ("{{ ('{0:>99999}' * 900000).format('a') }}", "format makes too much"),
        ("{{ range(999)|map('center', 100000)|list|length }}", "makes too much"),
        ("{{ ('http://a.b ' * 100000)|urlize(target='x' * 1000000) }}", "No filter named 'urlize'"),
        ("{{ range(99)|map('string')|join('x' * 1000000) }}", "join makes too much"),
        ("{{ ['b' * 100000] * 100000 }}", "makes too much"),
        ("{{ (['b' * 100000] * 100000)|string|length }}", "makes too much"),
        ("{{ [1]|tojson(indent=10000000000) }}", "indent of at most"),
        ("{{ [1]|tojson(separators=['x', 'y']) }}", "separators"),
        ("{{ (['b' * 100000] * 100000)|tojson }}", "makes too much"),
        ("{{ ('a\\n' * 100000)|indent('x' * 1000000) }}", "indent makes too much"),
        ("{{ ('a ' * 100000)|wordwrap(1, true, 'x' * 1000000) }}", "wordwrap makes too much"),
        ("{{ ('{0}' * 100000).format('x' * 1000000) }}", "format makes too much"),
        ("{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}", "format makes too much"),
        ("{{ ('%s' * 2)|format('x' * 9000000, 'y') }}", "format makes too much"),
        ("{{ ('a' * 9000000).translate({97: 'x' * 9000000}) }}", "not for templates"),
        ("{{ 'a'.encode().center(9999999999) }}", "not for templates"),
        ("{{ (1).to_bytes(9999999999, 'big') }}", "not for templates"),
        ("{{ 1.5|round(1000000000, 'ceil') }}", "too many digits"),
        (
            "{% set n = namespace(a=[], b=[]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
            "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
            "makes too much",
        ),
        ("{{ [1]|batch(9999999999, 0)|list }}", "number is over"),
        ("{{ ('a\\n' * 100000)|indent(100000) }}", "indent makes too much"),
        ("{{ ('.' * 100000 ~ '%s') % 1 ~ 1 / 0 }}", "division by zero"),  # in no time
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "makes too much|takes more",
        ),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "makes too much",
        ),
        ("{{ messages.__class__.__mro__ }}", "unsafe|undefined|access"),
        ("{{ messages.append(1) }}", "not safe|unsafe|not callable"),
    ],
)
def test_a_hostile_template_is_stopped(monkeypatch: pytest.MonkeyPatch, hostile: str, message: str) -> None:
    monkeypatch.setattr(jinja, "MAX_SECONDS", 0.2)
    with pytest.raises(LlavaError, match=message):
        render_jinja(hostile, [Message.user("Hi")], {})


def test_what_users_say_is_not_taken_for_a_format() -> None:
    said = '  What is 50% of 3.141592? {"id":1234567, "a": {"b": 1}} http://x/%20b/123456 '
    text = "messages[0]['content'][0]['text'].strip().replace('x', 'y')"
    template = "{{ " + text + "|indent(2)|replace('y', 'x') }}{{ 'a'.center(3) }}"
    (segment,) = render_jinja(template, [Message.user(said)], {})
    assert isinstance(segment, Text) and segment.text == said.strip() + " a "


def test_a_long_conversation_compiles_its_template_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    guarded = jinja._Environment.guarded
    monkeypatch.setattr(jinja._Environment, "guarded", lambda self, text: made.append(text) or guarded(self, text))
    turns = [Message.user("a"), Message.assistant("b")] * 50 + [Message.user("c")]
    text = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}"
    segments = render_jinja(text, turns, {})
    assert made == [text]
    assert sum(isinstance(one, Text) and one.trainable for one in segments) == 50


def test_a_guarded_loop_still_knows_its_place() -> None:
    text = "{% for m in messages %}{{ loop.index }} of {{ loop.length }}{{ '.' if loop.last else ', ' }}{% endfor %}"
    turns = [Message.user("a"), Message.assistant("b"), Message.user("c")]
    assert jinja._renderer(text, {})(turns) == "1 of 3, 2 of 3, 3 of 3."


def test_a_template_that_leaves_answers_out_is_told(smollm2: GgufLlm) -> None:
    asked = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0].text }}{% endif %}{% endfor %}"
    processor = replace(tiny_model(smollm2).processor, template="jinja", chat_template=asked)
    with pytest.raises(LlavaError, match="leaves answers out"):
        processor.ending()
