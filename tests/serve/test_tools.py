"""Calls of functions in what a model says, whatever way it is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.checkpoints.gguf import GgufLlm
from llava.engine.grammar import Grammars
from llava.serve.schema import Tool
from llava.serve.tools import ToolText, call_grammar, read_call

CALL = '<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>'


@given(st.lists(st.integers(0, 120), max_size=8))
def test_a_call_between_texts_is_found_however_it_comes(cuts: list[int]) -> None:
    said = f"I will < do it. {CALL} Then {CALL}"
    reader, shown, start = ToolText({"paint"}, only_calls=False), "", 0
    for cut in [*sorted(cuts), len(said)]:
        shown += reader.push(said[start:cut])
        start = max(start, cut)
    shown += reader.finish()
    assert shown.split() == ["I", "will", "<", "do", "it.", "Then"]
    assert [(call.name, json.loads(call.arguments)) for call in reader.calls] == [("paint", {"color": "red"})] * 2


@pytest.mark.parametrize(
    "said", ["a < b", "<tool_call>", "<tool_call>{}</tool_call>!", CALL.replace("paint", "erase"), "x <tool_ca"]
)
def test_what_is_no_call_is_shown(said: str) -> None:
    reader = ToolText({"paint"}, only_calls=False)
    assert reader.push(said) + reader.finish() == said and not reader.calls


def test_only_objects_with_known_names_are_calls() -> None:
    for text in ("", "[]", "1", '{"name": "paint"}', '{"name": "paint", "arguments": "x"}', "[" * 100_000):
        assert read_call(text, {"paint"}) is None


@pytest.mark.parametrize("count", [1, 2])
def test_parameters_may_refer_to_their_own_definitions(smollm2: GgufLlm, count: int) -> None:
    item = {"type": "object", "properties": {"next": {"$ref": "#/$defs/item"}, "name": {"enum": ["a"]}}}
    parameters = {"$defs": {"item": item}, "type": "object", "properties": {"first": {"$ref": "#/$defs/item"}}}
    tools = [
        Tool.model_validate({"type": "function", "function": {"name": f"f{i}", "parameters": parameters}})
        for i in range(count)
    ]
    grammars = Grammars(smollm2.tokenizer, smollm2.config.vocab_size)
    constraint = grammars.start(call_grammar(tools), frozenset())
    said = json.dumps({"name": "f0", "arguments": {"first": {"next": {"name": "a"}}}})
    for token in smollm2.tokenizer.encode(said)[0]:
        constraint.advance(token)
    assert "$defs" in str(parameters["properties"])  # the tool's own schema stays
