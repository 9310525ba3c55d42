"""Tokenizers: SmolLM2's from the GGUF, and LLaMA's SentencePiece against Hugging Face's outputs (via the templates)."""

from pathlib import Path

import mistral_common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llava.checkpoints.gguf import GgufLlm
from llava.errors import LlavaError
from llava.tokenizer import FastTokenizer, SentencePieceTokenizer
from tests.conftest import ENCODABLE

SENTENCEPIECE = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


@settings(max_examples=100, deadline=None)
@given(st.text(ENCODABLE, max_size=60))
def test_bpe_round_trips_and_starts_point_into_the_text(smollm2: GgufLlm, text: str) -> None:
    ids, starts = smollm2.tokenizer.encode(text)
    assert smollm2.tokenizer.decode(ids, keep_special=True) == text
    assert len(ids) == len(starts)
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)


def test_bpe_splits_digits_and_knows_special_tokens(smollm2: GgufLlm) -> None:
    ids, _ = smollm2.tokenizer.encode("<|im_start|>user\n2026<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert [smollm2.tokenizer.decode([token]) for token in ids[-5:-1]] == ["2", "0", "2", "6"]
    assert smollm2.tokenizer.decode(ids) == "user\n2026"


def test_bpe_equals_transformers_over_the_same_backend(smollm2: GgufLlm) -> None:
    tokenizer = smollm2.tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, clean_up_tokenization_spaces=False)
    for text in ("Hello world", "naïve café 你好 :)", "  two  spaces\n\nlines\t", "a<|im_end|>b"):
        assert tokenizer.encode(text)[0] == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581\0"), min_size=1, max_size=40))
def test_sentencepiece_starts_point_into_the_text(legacy: bool, text: str) -> None:
    ids, starts = SentencePieceTokenizer(SENTENCEPIECE, legacy).encode(text)
    assert len(ids) == len(starts)
    assert all(0 <= start < len(text) for start in starts)


def test_sentencepiece_prefix_space_after_special_tokens() -> None:
    old, new = (SentencePieceTokenizer(SENTENCEPIECE, legacy) for legacy in (True, False))
    text = "Hi</s>USER"
    assert old.encode(text)[0] != new.encode(text)[0]
    assert old.encode(text)[0][-1] == old.encode("USER")[0][-1]
    assert old.decode(old.encode(text)[0], keep_special=True) == "Hi</s>USER"
    assert old.decode(old.encode(text)[0]) == "Hi USER"


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(LlavaError, match="not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")


def test_ids_that_no_text_has_decode_to_nothing(smollm2: GgufLlm) -> None:
    """Vocabularies of models are padded; a random one may choose such an id."""
    tokenizer = SentencePieceTokenizer(SENTENCEPIECE)
    ids, _ = tokenizer.encode("a cat")
    assert tokenizer.decode([*ids, 32_005]) == tokenizer.decode(ids)
    ids, _ = smollm2.tokenizer.encode("a cat")
    assert smollm2.tokenizer.decode([*ids, 50_000]) == "a cat"
