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

    def kind(tool: Tool, place: str) -> dict[str, Any]:
        own = {key: value for key, value in (tool.function.parameters or {"type": "object"}).items() if key != "$id"}
        parameters = moved(own, f"{place}/properties/arguments")
        return {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }

    if len(tools) == 1:
        return Grammar.json(kind(tools[0], "#"))
    return Grammar.json({"anyOf": [kind(tool, f"#/anyOf/{index}") for index, tool in enumerate(tools)]})


def moved(schema: Any, place: str) -> Any:
    """A JSON schema that was a whole and now stands at a place ("#/properties/x") of another: its references follow."""
    if isinstance(schema, dict):
        found = {key: moved(value, place) for key, value in schema.items()}
        refers = schema.get("$ref")
        if isinstance(refers, str) and (refers == "#" or refers.startswith("#/")):
            found["$ref"] = place + refers[1:]
        return found
    return [moved(item, place) for item in schema] if isinstance(schema, list) else schema


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
