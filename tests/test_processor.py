"""Prompts: placeholders counted, keys that cover the pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.chat.messages import Image, Message
from llava.checkpoints.native import Loaded
from llava.errors import LlavaError
from llava.models.llava import IMAGE_TOKEN
from llava.processor import IGNORE


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=4))
def test_placeholders_equal_the_features_for_any_picture(tiny: Loaded, sizes: list[tuple[int, int]]) -> None:
    import PIL.Image

    images = [Image(PIL.Image.new("RGB", size)) for size in sizes]
    prompt = tiny.processor.prompt([Message.user("Look:", *images, "well?")])
    tokens = tiny.model.encode(tiny.processor.views(images), [span.layout for span in prompt.spans])
    assert prompt.ids.count(IMAGE_TOKEN) == len(tokens)
    assert [span.length for span in prompt.spans] == [tiny.model.vision.num_tokens] * len(sizes)
    for span in prompt.spans:
        assert prompt.ids[span.start : span.start + span.length] == [IMAGE_TOKEN] * span.length


def test_keys_tell_pictures_apart(tiny: Loaded, picture: Callable[..., Path]) -> None:
    def keys(path: Path) -> list[object]:
        return list(tiny.processor.prompt([Message.user(Image(path), "What?")]).keys())

    red, blue, again = picture("a.png", colour="red"), picture("b.png", colour="blue"), picture("c.png", colour="red")
    assert keys(red) == keys(again)
    assert keys(red) != keys(blue)
    assert len(keys(red)) == len(tiny.processor.prompt([Message.user(Image(red), "What?")]).ids)


def test_only_answers_are_supervised(tiny: Loaded, picture: Callable[..., Path]) -> None:
    turns = [Message.user(Image(picture("a.png")), "Colour?"), Message.assistant("red"), Message.user("Shape?")]
    prompt = tiny.processor.prompt([*turns, Message.assistant("round")])
    supervised = [label for label in prompt.labels if label != IGNORE]
    assert tiny.processor.tokenizer.decode(supervised, keep_special=True) == "red<|im_end|>round<|im_end|>"
    assert len(prompt.ids) == len(prompt.labels)


def test_a_missing_picture_is_one_clear_error(tiny: Loaded, tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match=r"none\.png: image not found"):
        tiny.processor.prompt([Message.user(Image(tmp_path / "none.png"), "What?")])
