"""The tokenizer of a checkpoint's folder: `tokenizer.json`, or SentencePiece's `tokenizer.model`."""

from pathlib import Path
from typing import Any

import tokenizers

from llava.checkpoints.hf_config import read_json
from llava.errors import LlavaError
from llava.tokenizer import FastTokenizer, SentencePieceTokenizer, Tokenizer

FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    "generation_config.json",
)


def read_tokenizer(folder: Path, prefer_sentencepiece: bool, image_token: str | None = None) -> Tokenizer:
    """The tokenizer in `folder`. Raises LlavaError where there is none, or it is damaged.

    prefer_sentencepiece: take `tokenizer.model` where both are there; the original runs the slow tokenizer.
    image_token: how the vocabulary spells an image, where texts around images are encoded together.
    """
    config = _optional(folder / "tokenizer_config.json")
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    if slow.exists() and (prefer_sentencepiece or not fast.exists()):
        return SentencePieceTokenizer(slow, bool(config.get("legacy", True)), _added(folder, config))
    if fast.exists():
        return _fast(folder, fast, config, image_token)
    raise LlavaError(f"{folder}: holds no tokenizer; expected tokenizer.json or tokenizer.model")


def _fast(folder: Path, file: Path, config: dict[str, Any], image_token: str | None) -> FastTokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  the library raises nothing more exact
        raise LlavaError(f"{file}: not a tokenizer ({error})") from None
    backend.no_padding()
    backend.no_truncation()
    eos = _token(config.get("eos_token")) or _token(_optional(folder / "special_tokens_map.json").get("eos_token"))
    eos_id = backend.token_to_id(eos) if eos else None
    if eos_id is None:
        found = _optional(folder / "generation_config.json").get("eos_token_id")
        first = found[0] if isinstance(found, list) and found else found
        eos_id = first if isinstance(first, int) else None
    if eos_id is None:
        raise LlavaError(f"{folder}: no eos_token in tokenizer_config.json or special_tokens_map.json")
    begins = backend.encode("", add_special_tokens=True).ids  # what the post-processor puts before a text
    known = image_token if image_token and backend.token_to_id(image_token) is not None else None
    return FastTokenizer(backend, begins[0] if begins else None, eos_id, known)


def _added(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Tokens that were added to a SentencePiece model, with their ids."""
    try:
        added = {str(name): int(token) for name, token in _optional(folder / "added_tokens.json").items()}
        for token, entry in (config.get("added_tokens_decoder") or {}).items():
            if content := _token(entry):
                added[content] = int(token)
    except (ValueError, TypeError, AttributeError):
        raise LlavaError(f"{folder}: added tokens: expected names and whole numbers") from None
    return added


def _token(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
