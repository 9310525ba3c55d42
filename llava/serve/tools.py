"""Calls of functions in what the model says: found in free text, or enforced by a grammar."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from llava.engine.grammar import Grammar
from llava.serve.prompts import CALL, END_OF_CALL
from llava.serve.schema import Tool


@dataclass(frozen=True)
class Call:
    """A function and its arguments in JSON."""

    id: str
    name: str
    arguments: str

    def body(self) -> dict[str, Any]:
        """As OpenAI's API shows it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def call_grammar(tools: list[Tool]) -> Grammar:
    """An answer that is a call of one of these functions, and nothing else."""
    kinds = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return Grammar.json(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def read_call(text: str, names: set[str]) -> Call | None:
    """The call that a JSON text makes of one of these functions; None where it makes none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("name") not in names or not isinstance(found.get("arguments"), dict):
        return None
    return Call(f"call_{secrets.token_hex(12)}", found["name"], json.dumps(found["arguments"]))


class ToolText:
    """Splits an answer that may hold calls, as it comes, into text to show and calls."""

    def __init__(self, names: set[str], only_calls: bool) -> None:
        self._names, self._only_calls, self._held = names, only_calls, ""
        self.calls: list[Call] = []

    def push(self, text: str) -> str:
        """Add what the model said; return what of it can be shown."""
        self._held += text
        if self._only_calls:
            return ""
        shown = ""
        while True:
            start = self._held.find(CALL)
            end = self._held.find(END_OF_CALL, max(start, 0))
            if start < 0 or end < 0:
                break
            call = read_call(self._held[start + len(CALL) : end], self._names)
            end += len(END_OF_CALL)
            shown += self._held[: start if call else end]
            self._held = self._held[end:]
            if call:
                self.calls.append(call)
        safe = start if start >= 0 else len(self._held) - _overlap(self._held)
        shown, self._held = shown + self._held[:safe], self._held[safe:]
        return "" if self.calls and not shown.strip() else shown

    def finish(self) -> str:
        """The rest of the text, once nothing follows."""
        held, self._held = self._held, ""
        call = read_call(held.removeprefix(CALL), self._names)
        if call is None:
            return "" if self.calls and not held.strip() else held
        self.calls.append(call)
        return ""


def _overlap(text: str) -> int:
    """The length of the longest end of a text that may begin a call."""
    return next((n for n in range(min(len(text), len(CALL) - 1), 0, -1) if CALL.startswith(text[-n:])), 0)
