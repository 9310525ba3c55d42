"""A model's linear layers swapped, from outside, for the packed ones that inference runs on a CPU.

A decoder is packed block by block, as soon as a block's weights are there: the whole model never lies in memory in
float32. q, k and v become one matrix, gate and up another. Oracle: the decoder that was packed (tests/quantization).
"""

import ctypes
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.models.cache import CacheBatch
from llava.models.decoder import MLP, Attention, Block, Decoder
from llava.models.llava import LlavaModel
from llava.quantization.linears import Precision, pack_linear


class PackedAttention(nn.Module):
    """`Attention` with q, k and v from one matrix."""

    def __init__(self, attention: Attention, precision: Precision) -> None:
        super().__init__()
        self.qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj), precision)
        self.out = _joined((attention.o_proj,), precision)
        self.inner = attention
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        out: Tensor = self.out(self.inner.attend(self.qkv(x), rope, batch, layer))
        return out


class PackedMLP(nn.Module):
    """`MLP` with gate and up from one matrix."""

    def __init__(self, mlp: MLP, precision: Precision) -> None:
        super().__init__()
        self.gate_up = _joined((mlp.gate_proj, mlp.up_proj), precision)
        self.down = _joined((mlp.down_proj,), precision)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate).mul_(up))
        return out


class HalfEmbedding(nn.Module):
    """An embedding stored in half precision that gives float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.half(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


def _joined(layers: Iterable[nn.Linear], precision: Precision) -> nn.Module:
    """One packed layer that gives what `layers` give, one after the other."""
    listed = list(layers)
    biases: list[Tensor] = [layer.bias for layer in listed if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in listed]
    return pack_linear(torch.cat(weights), torch.cat(biases) if biases else None, precision)


class Packer:
    """Packs the parts of a decoder, each when its last weight has arrived. The embedding and head keep 16 bits."""

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        self._decoder, self._precision = decoder, precision
        self._missing: dict[str, set[str]] = {}
        for name in decoder.state_dict():
            self._missing.setdefault(_part(name), set()).add(name)

    @torch.no_grad()
    def arrived(self, name: str) -> None:
        """The decoder's tensor of this name is there."""
        part = _part(name)
        self._missing[part].discard(name)
        if self._missing[part]:
            return
        decoder, precision = self._decoder, self._precision
        if part.isdigit():
            _pack_block(decoder.layers[int(part)], precision)
        elif part == "embed_tokens":
            _pack_embedding(decoder, precision)
        elif part == "lm_head" and decoder.lm_head is not None:
            decoder.lm_head = _joined((decoder.lm_head,), _half(precision))  # type: ignore[assignment]
        _give_back()


def pack_decoder(decoder: Decoder, precision: Precision) -> None:
    """Pack a decoder that is loaded, part by part."""
    packer = Packer(decoder, precision)
    for name in decoder.state_dict():
        packer.arrived(name)


@torch.no_grad()
def pack_beside(model: LlavaModel, precision: Precision) -> None:
    """Pack the linear layers of the vision encoder and the projector, which keep 16 bits."""
    decoder = set(model.llm.modules())
    for module in [module for module in model.modules() if module not in decoder]:
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, _joined((layer,), _half(precision)))


def _give_back() -> None:
    """Return freed memory to the system. glibc would keep the gaps that the weights of each block leave behind."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _part(name: str) -> str:
    """The number of the block that a tensor of the decoder belongs to, or the module's name."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "layers" else first


def _half(precision: Precision) -> Precision:
    return precision if precision == "float32" else "float16"


def _pack_block(block: nn.Module, precision: Precision) -> None:
    assert isinstance(block, Block)
    block.self_attn = PackedAttention(block.self_attn, precision)  # type: ignore[assignment]
    block.mlp = PackedMLP(block.mlp, precision)  # type: ignore[assignment]


def _pack_embedding(decoder: Decoder, precision: Precision) -> None:
    weight = decoder.embed_tokens.weight
    if precision != "float32":
        decoder.embed_tokens = HalfEmbedding(weight)  # type: ignore[assignment]
        if decoder.lm_head is None:
            decoder.lm_head = pack_linear(weight, None, "float16")  # type: ignore[assignment]
    elif decoder.lm_head is None:
        # Both the table and the head. Column by column, a CPU reads it twice as fast for one token; values stay.
        weight.data = weight.data.t().contiguous().t()
