"""Text to ids with the place of each token in the text, and back. Two kinds: BPE and SentencePiece.

A special token written in the text (`<|im_end|>`, `</s>`) becomes that token, as in the reference implementations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llava.errors import LlavaError

Encoding = tuple[list[int], list[int]]  # ids, and for each the index of its first character in the text


class Tokenizer(Protocol):
    """What the processor and the engine need of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """Put before the first token of a prompt, where the model was trained so."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends an answer."""
        ...

    def encode(self, text: str) -> Encoding:
        """Ids of a text and the character at which each begins. Adds no token of its own."""
        ...

    def encode_parts(self, parts: Sequence[str]) -> list[Encoding]:
        """As `encode`, for the texts of one prompt that stand between its images."""
        ...

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of ids. Bytes that are not whole characters become U+FFFD."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """What one id adds to a text in UTF-8: perhaps part of a character. A special token gives its name."""
        ...


@dataclass(frozen=True)
class FastTokenizer:
    """A tokenizer of the `tokenizers` library.

    image_token: how the vocabulary spells an image, if it does. Texts between images are then encoded together, as
    Hugging Face's processors do: a prefix space at the start of a text comes once, not after every image.
    """

    backend: tokenizers.Tokenizer = field(repr=False)  # a page of text for each token otherwise
    bos_id: int | None
    eos_id: int
    image_token: str | None = None

    def encode(self, text: str) -> Encoding:
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeError):
            raise LlavaError("the text holds half of a surrogate pair, which is no character") from None
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_parts(self, parts: Sequence[str]) -> list[Encoding]:
        if self.image_token is None:
            return [self.encode(part) for part in parts]
        image = self.backend.token_to_id(self.image_token)
        ids, starts = self.encode(self.image_token.join(parts))
        marks = [place for place, token in enumerate(ids) if token == image]
        if len(marks) != len(parts) - 1:
            raise LlavaError(f"the text holds the image token '{self.image_token}' itself")
        encodings, offset = [], 0
        for part, begin, end in zip(parts, [-1, *marks], [*marks, len(ids)], strict=True):
            encodings.append((ids[begin + 1 : end], [max(0, start - offset) for start in starts[begin + 1 : end]]))
            offset += len(part) + len(self.image_token)
        return encodings

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=not keep_special)

    def bytes_of(self, token: int) -> bytes:
        name = self.backend.id_to_token(token)
        if name is None:
            return b""
        added = self.backend.get_added_tokens_decoder()
        if token not in added and isinstance(self.backend.decoder, decoders.ByteLevel):
            return bytes(_BYTES[character] for character in name)
        return name.encode() if token in added else _piece(name)


def _bytes_by_name() -> dict[str, int]:
    """How GPT-2's byte-level BPE names bytes: printable ones as themselves, the others by characters from 256 on.

    Source: openai/gpt-2 src/encoder.py (`bytes_to_unicode`).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_by_name()


def _piece(name: str) -> bytes:
    """The text of a SentencePiece, of which bytes are named <0x0A>."""
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:-1], 16)])
    return name.replace("\u2581", " ").encode()


def bpe_tokenizer(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    special: list[str],
    split_digits: bool,
    bos_id: int | None,
    eos_id: int,
) -> FastTokenizer:
    """GPT-2's byte-level BPE; `split_digits` makes every digit a token of its own, as SmolLM does.

    Raises ValueError where the merges do not fit the vocabulary.
    """
    try:
        model = models.BPE(vocab=vocab, merges=merges)
    except Exception as error:  # noqa: BLE001  the library raises nothing more exact
        raise ValueError(str(error)) from None
    backend = tokenizers.Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    steps = [pre_tokenizers.Digits(individual_digits=True), byte_level] if split_digits else [byte_level]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    return FastTokenizer(backend, bos_id, eos_id)


class SentencePieceTokenizer:
    """LLaMA's SentencePiece, equal to Hugging Face's slow `LlamaTokenizer` in both of its behaviours.

    legacy=True: SentencePiece adds its prefix space after every special token in the text.
    legacy=False: only at the start of the text. (huggingface/transformers pull request 24565)
    added: special tokens beside those of the file, with their ids.
    """

    def __init__(self, path: Path, legacy: bool = True, added: Mapping[str, int] | None = None) -> None:
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        self._model = sentencepiece.SentencePieceProcessor()
        self._legacy = legacy
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(path.read_bytes())
            proto.normalizer_spec.add_dummy_prefix = legacy
            self._model.LoadFromSerializedProto(proto.SerializeToString())
        except (OSError, RuntimeError, DecodeError) as error:
            raise LlavaError(f"{path}: not a SentencePiece model ({error})") from None
        self.bos_id: int | None = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        ids = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        self._special = {self._model.id_to_piece(i): i for i in ids if i >= 0} | dict(added or {})

    def encode(self, text: str) -> Encoding:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise LlavaError("the text holds half of a surrogate pair, which is no character")
        ids: list[int] = []
        starts: list[int] = []
        prefix = 0 if self._legacy else 1  # a space that SentencePiece would have added, at the start of the text
        if prefix:
            text = " " + text
        for start, end, special in _split_special(text, self._special):
            if special is not None:
                if not self._legacy and text[:start] == " " and start == 1:
                    ids, starts = [], []  # a text that begins with a special token gets no prefix space
                ids.append(special)
                starts.append(max(start - prefix, 0))
            else:
                pieces = self._model.encode(text[start:end], out_type="offset_mapping")
                ids += pieces["ids"]
                starts += [max(start + begin - prefix, 0) for begin, _ in pieces["offsets"]]
        return ids, starts

    def encode_parts(self, parts: Sequence[str]) -> list[Encoding]:
        return [self.encode(part) if part else ([], []) for part in parts]

    def pieces(self) -> tuple[list[bytes], list[int]]:
        """The bytes of each id's text, and the ids of special tokens, whose names stand in the place of a text."""
        pieces: list[bytes] = []
        for token in range(self._model.vocab_size()):
            pieces.append(_piece(self._model.id_to_piece(token)))
        for name, token in self._special.items():
            pieces += [b""] * (token + 1 - len(pieces))
            pieces[token] = name.encode()
        return pieces, sorted(self._special.values())

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        names = {token: name for name, token in self._special.items()}
        text, plain = "", []
        for token in ids:
            if token not in names:
                if token < self._model.vocab_size():  # a model may have rows for ids that no text has
                    plain.append(token)
            elif keep_special:
                text += self._model.decode(plain) + names[token]
                plain = []
        return text + str(self._model.decode(plain))

    def bytes_of(self, token: int) -> bytes:
        names = {number: name for name, number in self._special.items()}
        if token in names or token >= self._model.vocab_size():
            return names.get(token, "").encode()
        return _piece(self._model.id_to_piece(token))


def _split_special(text: str, special: dict[str, int]) -> list[tuple[int, int, int | None]]:
    """Cut a text at special tokens: (start, end, its id or None), in order, without empty pieces."""
    pieces: list[tuple[int, int, int | None]] = []
    start = position = 0
    while position < len(text):
        hit = next((token for token in special if text.startswith(token, position)), None)
        if hit is None:
            position += 1
            continue
        if start < position:
            pieces.append((start, position, None))
        pieces.append((position, position + len(hit), special[hit]))
        start = position = position + len(hit)
    if start < len(text):
        pieces.append((start, len(text), None))
    return pieces
