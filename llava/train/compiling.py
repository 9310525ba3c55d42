"""The LLM's blocks compiled for training: fewer passes over memory between products of matrices."""

import torch

from llava.errors import LlavaError
from llava.models.llava import LlavaModel


def compile_blocks(model: LlavaModel) -> None:
    """Have torch.compile make one graph, for rows of any length, that all blocks run. Raises LlavaError.

    Weights, their names and what is computed stay as they are.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except (
        RuntimeError,
        OSError,
        ImportError,
    ) as error:  # no compiler, no headers, no room
        reason = str(error).strip().splitlines()[0]
        raise LlavaError(
            f"compile: torch.compile does not work here ({reason}); install a C++ compiler, or set compile to false"
        ) from None
    for block in model.llm.layers:
        block.compile(dynamic=True)
