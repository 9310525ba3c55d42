"""Scores as OpenAI's API shows them."""

from llava.checkpoints.gguf import GgufLlm
from llava.engine.request import Scored
from llava.serve.answers import text_logprobs


def test_parts_of_characters_are_told_by_their_bytes_and_the_likeliest_of_a_name_is_shown(smollm2: GgufLlm) -> None:
    tokenizer = smollm2.tokenizer
    parts = tokenizer.encode("\N{TIGER FACE}")[0]
    assert len(parts) > 1
    ids = [*parts, tokenizer.encode(" cat")[0][0]]
    top = [(token, -1.0 - place) for place, token in enumerate([parts[0], 0, 0, ids[-1]])]
    shown = text_logprobs(tokenizer, ids, [Scored(-1.0, top) for _ in ids], 7)
    first = "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.bytes_of(parts[0]))
    assert shown["tokens"][0] == first and shown["tokens"][-1] == " cat"
    assert shown["top_logprobs"][0] == {first: -1.0, "<|endoftext|>": -2.0, " cat": -4.0}
    assert shown["text_offset"][0] == 7
