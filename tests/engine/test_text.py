"""Text as it streams: whole characters, stop strings."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llava.checkpoints.gguf import GgufLlm
from llava.engine.text import TextStream
from tests.conftest import ENCODABLE


@settings(max_examples=100, deadline=None)
@given(text=st.text(ENCODABLE, max_size=40))
def test_pieces_are_whole_characters_and_make_up_the_text(smollm2: GgufLlm, text: str) -> None:
    stream = TextStream(smollm2.tokenizer)
    pieces = [stream.push(token) for token in smollm2.tokenizer.encode(text)[0]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text.lstrip()


def test_an_emoji_of_many_tokens_comes_in_one_piece(smollm2: GgufLlm) -> None:
    ids = smollm2.tokenizer.encode("a 🦙!")[0]
    stream = TextStream(smollm2.tokenizer)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert len(ids) > 4
    assert any("🦙" in piece for piece in pieces)
    assert "".join(pieces) == "a 🦙!"


@settings(max_examples=100, deadline=None)
@given(before=st.text("abST", max_size=8), after=st.text("abST", max_size=8))
def test_text_ends_before_the_first_stop_string(smollm2: GgufLlm, before: str, after: str) -> None:
    stop = ["STOP", "ab"]
    text = f"x{before}STOP{after}"
    stream, shown = TextStream(smollm2.tokenizer, stop), ""
    for token in smollm2.tokenizer.encode(text)[0]:
        shown += stream.push(token)
        assert not any(word in shown for word in stop)
    shown += stream.finish()
    assert stream.stopped
    assert shown == text[: min(text.find(word) for word in stop if word in text)]


def test_the_beginning_of_a_stop_string_is_shown_in_the_end(smollm2: GgufLlm) -> None:
    stream = TextStream(smollm2.tokenizer, ["###END"])
    shown = "".join(stream.push(token) for token in smollm2.tokenizer.encode("done ###")[0])
    assert "#" not in shown
    assert shown + stream.finish() == "done ###"


def test_what_leads_a_continuation_is_part_of_it(smollm2: GgufLlm) -> None:
    prompt, rest = "The capital of France is", " Paris.\n"
    ids = smollm2.tokenizer.encode(prompt + rest)[0]
    known = len(smollm2.tokenizer.encode(prompt)[0])
    stream = TextStream(smollm2.tokenizer, ["\n"], ids[:known][-8:])
    assert "".join(stream.push(token) for token in ids[known:]) + stream.finish() == " Paris."
    assert stream.stopped
