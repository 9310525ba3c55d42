"""`torch.compile` for a GPU: the decoder's blocks, so that a decoding step launches few and captured kernels.

Attention stays outside: each sequence has a cache of its own length. What lies between two attentions is compiled for a
few numbers of tokens and captured in CUDA graphs; steps are padded to the next of them, and longer ones, which read
prompts, run as they are. Never run on a GPU so far: tests compile on the CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.models.cache import CacheBatch
from llava.models.decoder import Block
from llava.models.llava import LlavaModel

_SIZES = (1, 2, 4, 8, 16, 32)  # tokens of a step


class CompiledBlock(nn.Module):
    """A decoder's block whose parts before and after attention are compiled for steps of few tokens."""

    def __init__(self, block: Block, before: Callable[[Block, Tensor], Tensor], after: Callable[..., Tensor]) -> None:
        super().__init__()
        self.block = block
        self._before, self._after = before, after

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        tokens = x.shape[1]
        size = next((size for size in _SIZES if size >= tokens), None)
        if batch is None or size is None:
            out: Tensor = self.block(x, rope, batch, layer)
            return out
        padded = F.pad(x, (0, 0, 0, size - tokens))
        qkv = self._before(self.block, padded)[:, :tokens].clone()  # the graph's own memory is written anew
        y = self.block.self_attn.attend(qkv, rope, batch, layer)
        return self._after(self.block, padded, F.pad(y, (0, 0, 0, size - tokens)))[:, :tokens].clone()


def compile_blocks(model: LlavaModel, backend: str = "inductor") -> None:
    """Compile a model's decoder, from outside. The first steps of each size then take long."""
    captured = backend == "inductor" and model.device.type == "cuda"
    mode = "reduce-overhead" if captured else None  # with CUDA graphs
    before = torch.compile(_before, fullgraph=True, dynamic=False, backend=backend, mode=mode)
    after = torch.compile(_after, fullgraph=True, dynamic=False, backend=backend, mode=mode)
    blocks = model.llm.layers
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        blocks[index] = CompiledBlock(block, before, after)


def _before(block: Block, x: Tensor) -> Tensor:
    """q, k and v of all tokens."""
    return block.self_attn.project(block.input_layernorm(x))


def _after(block: Block, x: Tensor, y: Tensor) -> Tensor:
    """The block's output, from its input and what its heads gave."""
    x = x + block.self_attn.o_proj(y)
    out: Tensor = x + block.mlp(block.post_attention_layernorm(x))
    return out
