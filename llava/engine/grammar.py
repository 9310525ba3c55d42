"""Answers that must fit a JSON schema or a regular expression: which tokens may come next (by llguidance)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from llava.errors import GrammarError, LlavaError
from llava.tokenizer import FastTokenizer, SentencePieceTokenizer, Tokenizer

_LONGEST = 200_000  # characters of a grammar
_KEPT = 16  # compiled grammars: answers to one question, and an agent's, share them
# White space where models put it, and nowhere else: where any is allowed, small models never stop to write it.
_WRITING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What an answer must fit, as a whole: `text` is a JSON schema, or a regular expression (of Rust's kind)."""

    kind: Literal["json", "regex"]
    text: str

    @staticmethod
    def json(schema: dict[str, Any]) -> "Grammar":
        """An answer in JSON that this schema describes; {} is any."""
        return Grammar("json", json.dumps(schema))


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int, stop_ids: Iterable[int]) -> None:
        self._matcher, self._vocabulary, self._stop_ids = matcher, vocabulary, list(stop_ids)

    def allowed(self) -> Tensor:
        """Which ids may come next (V,), bool. Those that end an answer may where it is complete."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        places = torch.arange(8, dtype=torch.uint8)
        mask = (bits[:, None] >> places & 1).bool().flatten()[: self._vocabulary]
        mask[self._stop_ids] = self._matcher.is_accepting()
        return mask

    def advance(self, token: int) -> None:
        """A token was chosen. Raises LlavaError where the grammar grows beyond its limits."""
        if not self._matcher.consume_token(token):
            raise LlavaError(f"the answer cannot follow its grammar: {_first_line(self._matcher.get_error())}")

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, and nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Starts constraints for one tokenizer, which is prepared when the first is asked for (half a second)."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._prepared: Any = None
        self._begun: dict[tuple[str, str], Any] = {}  # grammars of late, each at its beginning

    def start(self, grammar: Grammar, stop_ids: Iterable[int]) -> Constraint:
        """The beginning of an answer. Raises GrammarError for a grammar that is wrong, not supported or too large."""
        key = grammar.kind, grammar.text
        if key not in self._begun:
            if len(self._begun) == _KEPT:
                self._begun.pop(next(iter(self._begun)))
            self._begun[key] = self._compile(grammar)
        return Constraint(self._begun[key].deep_copy(), self._vocabulary, stop_ids)

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher

        if len(grammar.text) > _LONGEST:
            raise GrammarError(f"the grammar has {len(grammar.text)} characters, at most {_LONGEST} are taken")
        if grammar.kind == "regex":
            text = LLMatcher.grammar_from_regex(grammar.text)
        else:
            try:
                json.loads(grammar.text)
                text = LLMatcher.grammar_from_json_schema(grammar.text, overrides=_WRITING)
            except ValueError as error:
                raise GrammarError(f"not a JSON schema: {_first_line(str(error))}") from None
        if self._prepared is None:
            self._prepared = _prepare(self._tokenizer, self._vocabulary)
        matcher = LLMatcher(self._prepared, text, log_level=0)
        if matcher.is_error():
            what = "JSON schema" if grammar.kind == "json" else "regular expression"
            raise GrammarError(f"this {what} cannot be followed: {_first_line(matcher.get_error())}")
        return matcher


def _prepare(tokenizer: Tokenizer, vocabulary: int) -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    if isinstance(tokenizer, FastTokenizer):
        return LLTokenizer(tokenizer.backend.to_str(), n_vocab=vocabulary, eos_token=tokenizer.eos_id)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return LLTokenizer(TokenizerWrapper(_Pieces(tokenizer)), n_vocab=vocabulary, eos_token=tokenizer.eos_id)


class _Pieces:
    """A SentencePiece tokenizer as llguidance takes it."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens, self.special_token_ids = tokenizer.pieces()

    def __call__(self, text: bytes) -> list[int]:
        ids, starts = self._tokenizer.encode("\x02" + text.decode())  # so that no space is put before the text
        return [token for token, start in zip(ids, starts, strict=True) if start >= 1]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "unknown error"
