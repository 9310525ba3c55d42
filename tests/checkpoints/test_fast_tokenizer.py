"""tokenizer.json made from tokenizer.model gives the ids that SentencePiece gives."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.checkpoints.fast_tokenizer import fast_from_sentencepiece
from llava.errors import LlavaError
from llava.tokenizer import SentencePieceTokenizer
from scripts.random_checkpoints import VOCABULARY

FAST, SLOW = fast_from_sentencepiece(VOCABULARY), SentencePieceTokenizer(VOCABULARY, legacy=True)
WORDS = st.sampled_from(
    ["USER:", "the", " cat", "  ", "\n", "</s>", "<unk>", "naïve", "日本", "🙂", "1234", "don't", "\t", "ing"]
)


@given(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\u2581\x00"), max_size=40),
        st.lists(WORDS).map("".join),
    )
)
@settings(max_examples=300, deadline=None)
def test_ids_are_sentencepieces(text: str) -> None:
    assert FAST is not None
    assert FAST.encode(text, add_special_tokens=False).ids == SLOW.encode(text)[0]


def test_a_text_begins_with_the_beginning_token_and_decodes_to_itself() -> None:
    assert FAST is not None
    encoded = FAST.encode("A chat between a curious user")
    assert encoded.ids[0] == SLOW.bos_id
    assert FAST.decode(encoded.ids) == "A chat between a curious user"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(LlavaError, match="not a SentencePiece model"):
        fast_from_sentencepiece(tmp_path / "tokenizer.model")
