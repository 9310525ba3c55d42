"""Compiled blocks give the answers that they gave, alone, together, and beside prompts that are read."""

import torch

from llava.assistant import Assistant
from llava.chat.messages import Message
from llava.checkpoints.gguf import GgufLlm
from llava.engine.compiled import CompiledBlock, compile_blocks
from llava.engine.sampling import Sampling
from tests.conftest import tiny_model
from tests.engine.test_engine import greedy


def test_compiled_blocks_change_no_answer(smollm2: GgufLlm) -> None:
    torch.compiler.reset()
    loaded = tiny_model(smollm2)
    conversations = [[Message.user(text)] for text in ("Say something", "Say something else, please", "word " * 60)]
    expected = [greedy(loaded, messages, 6) for messages in conversations]
    compile_blocks(loaded.model, backend="eager")  # what is compiled, without what a compiler makes of it
    assert all(isinstance(block, CompiledBlock) for block in loaded.model.llm.layers)
    assistant = Assistant(loaded)
    assert [answer.ids for (answer,) in assistant.answers(conversations, Sampling(6))] == expected
    for messages, ids in zip(conversations, expected, strict=True):
        assert [answer.ids for answer in assistant.answers([messages], Sampling(6))[0]] == [ids]
