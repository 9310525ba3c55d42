"""A model's linear layers swapped, from outside, for the packed ones that inference runs on a CPU.

A decoder is packed block by block, as soon as a block's weights are there: the whole model never lies in memory in
float32. q, k and v become one matrix, gate and up another. Oracle: the decoder that was packed (tests/quantization).
"""

import ctypes
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import Precision, Storage
from llava.decoding.build import function, possible, readable
from llava.decoding.calls import gated, multiplied_in_order
from llava.models.cache import CacheBatch
from llava.models.decoder import MLP, Attention, Block, Decoder
from llava.models.llava import LlavaModel
from llava.models.vision.transformer import VitAttention, VitBlock
from llava.quantization.gpu import place
from llava.quantization.kernels import pack_levels, pack_linear
from llava.quantization.linears import Levels, joined, quantize

Factors = tuple[Tensor, Tensor]  # of a LoRA: A (r, in) and B (out, r), scaled; B @ A is added to a weight
Adapters = Mapping[nn.Module, Factors]  # linear layers and their LoRAs

Target = tuple[Storage, torch.device]  # how weights are stored for inference, and where

_RANKS = 16  # those of a LoRA are a multiple of it
_MUCH = 2**24  # bytes that are freed
WORKERS = 2  # parts that are packed at once, while others are read: packing itself runs on one core


class PackedAttention(nn.Module):
    """`Attention` with q, k and v from one matrix."""

    def __init__(self, attention: Attention, precision: Precision, adapters: Adapters, plain: bool) -> None:
        super().__init__()
        self.qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj), precision, adapters, plain)
        self.out = _joined((attention.o_proj,), precision, adapters, plain)
        self.inner = attention
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        out: Tensor = self.out(self.inner.attend(self.qkv(x), rope, batch, layer))
        return out


class PackedMLP(nn.Module):
    """`MLP` with gate and up from one matrix."""

    def __init__(self, mlp: MLP, precision: Precision, adapters: Adapters, plain: bool) -> None:
        super().__init__()
        self.gate_up = _joined((mlp.gate_proj, mlp.up_proj), precision, adapters, plain)
        self.down = _joined((mlp.down_proj,), precision, adapters, plain)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)
        inner = gated(both)
        if inner is None:
            gate, up = both.chunk(2, dim=-1)
            inner = F.silu(gate).mul_(up)
        out: Tensor = self.down(inner)
        return out


class PackedVitAttention(nn.Module):
    """`VitAttention` with q, k and v from one matrix."""

    def __init__(self, attention: VitAttention, precision: Precision) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj), precision, {})
        self.out = _joined((attention.out_proj,), precision, {})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (N, H, T, Dh) each
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class LowRank:
    """What LoRAs add to a layer: B_i (A_i x), each pair to some of its outputs, one pair after the other.

    In float32, and in an order of its own for each row (`multiplied_in_order`), whatever rows are beside it: the next
    layer may round its inputs.
    """

    def __init__(self, pairs: Sequence[Factors]) -> None:
        padded = [_padded(pair) for pair in pairs]
        self.down = torch.cat([down for down, _ in padded])
        self.ups = [up for _, up in padded]

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add to the outputs (..., out) of a layer what belongs to its inputs x (..., in)."""
        inner, rank, output = _times(x, self.down), 0, 0
        for up in self.ups:
            outputs, inputs = up.shape
            if inputs:
                out[..., output : output + outputs] += _times(inner[..., rank : rank + inputs], up)
            rank, output = rank + inputs, output + outputs


def _padded(pair: Factors) -> Factors:
    """A LoRA of a rank that the compiled product reads, by zeros."""
    down, up = pair
    more = -len(down) % _RANKS
    return F.pad(down.float(), (0, 0, 0, more)), F.pad(up.float(), (0, more))


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times a weight (out, in): (..., out)."""
    found = multiplied_in_order(x, weight)
    return F.linear(x, weight) if found is None else found


class AdaptedLinear(nn.Module):
    """A packed layer with LoRAs beside it: its 4 bits would round away most of what an adapter learned."""

    def __init__(self, layer: nn.Module, pairs: Sequence[Factors]) -> None:
        super().__init__()
        self.layer, self.lora = layer, LowRank(pairs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.lora.add_to(out, x)
        return out


class HalfEmbedding(nn.Module):
    """An embedding stored in half precision that gives float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.half(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


def _joined(
    layers: Sequence[nn.Linear | Levels], precision: Precision, adapters: Adapters, plain: bool = False
) -> nn.Module:
    """One packed layer that gives what `layers` give, one after the other. They lose their weights."""
    sizes = [_shape(layer)[0] for layer in layers]
    if precision in ("int8", "int4"):
        levels: list[Levels] = []
        for layer in layers:
            if isinstance(layer, Levels):
                levels.append(layer)
            else:
                levels.append(quantize(layer.weight, layer.bias, precision))
                del layer.weight
        packed = pack_levels(joined(levels), plain)
    else:
        whole = [layer for layer in layers if isinstance(layer, nn.Linear)]
        biases: list[Tensor] = [layer.bias for layer in whole if layer.bias is not None]
        weights: list[Tensor] = [layer.weight for layer in whole]
        for layer in whole:
            del layer.weight
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        weights.clear()
        packed = pack_linear(weight, torch.cat(biases) if biases else None, precision, plain)
    if not any(layer in adapters for layer in layers):
        return packed
    pairs = zip(layers, sizes, strict=True)
    inputs = _shape(layers[0])[1]
    return AdaptedLinear(
        packed, [adapters.get(layer, (torch.empty(0, inputs), torch.empty(size, 0))) for layer, size in pairs]
    )


def _shape(layer: nn.Linear | Levels) -> tuple[int, int]:
    """Outputs and inputs."""
    return layer.shape if isinstance(layer, Levels) else (layer.out_features, layer.in_features)


class Packer:
    """Packs the parts of a model, each when its last weight has arrived: a block of a transformer, or a linear layer.

    Beside the LLM's blocks, a part keeps 16 bits, or the type that it was stored in, unless 8 bits are asked for.
    """

    def __init__(self, model: LlavaModel, storage: Storage, device: torch.device) -> None:
        self._model, self.storage, self._device = model, storage, device
        self._adapters: dict[nn.Module, Factors] = {}
        self._missing: dict[str, set[str]] = {}
        for name in model.state_dict():
            self._missing.setdefault(_part(name), set()).add(name)
        self._inference = torch.is_inference_mode_enabled()  # a mode of the thread, for those that pack too
        self._workers, self._freed = ThreadPoolExecutor(WORKERS), 0
        self._jobs: deque[Future[None]] = deque()
        if device.type == "cpu" and (storage.precision in ("int8", "int4") or storage.beside_8bit) and possible():
            function("step")  # an engine waits for them; what is not there yet is built beside the loading
        # One matrix in 4 bits keeps the compiled step from the model: then the others gain nothing from plain layouts.
        self._plain = device.type == "cpu" and storage.precision != "int4" and readable(model.config.llm)

    @property
    def keeps_adapters(self) -> bool:
        """Whether a LoRA stays beside what is packed: `Int4Linear` would round away most of it."""
        return self.storage.precision == "int4" and self._device.type == "cpu"

    def adapt(self, name: str, factors: Factors) -> bool:
        """Let the linear layer of this name have a LoRA beside it: A (r, in), B (out, r). False: it does not fit."""
        try:
            layer = self._model.get_submodule(name)
        except AttributeError:
            return False
        if not isinstance(layer, nn.Linear | Levels) or (len(factors[1]), factors[0].shape[1]) != _shape(layer):
            return False
        self._adapters[layer] = factors
        return True

    def takes(self, name: str) -> bool:
        """Whether the tensor of this name is packed in the end, and so may come in any floating-point type."""
        module = self._model.get_submodule(name.rpartition(".")[0])
        return isinstance(module, nn.Linear | Levels) or name == "llm.embed_tokens.weight"

    def arrived(self, name: str) -> None:
        """The model's tensor of this name is there."""
        part = _part(name)
        self._missing[part].discard(name)
        if part and not self._missing[part]:
            if len(self._jobs) > WORKERS:  # what waits takes memory
                self._jobs.popleft().result()
            self._jobs.append(self._workers.submit(self._pack, part))

    def finish(self) -> None:
        """Wait until all that has arrived is packed. Raises what went wrong."""
        try:
            while self._jobs:
                self._jobs.popleft().result()
            if self._device.type != "cpu":  # what is in no part: norms, embeddings of positions
                self._model.to(self._device)
        finally:
            self._workers.shutdown(cancel_futures=True)

    def _pack(self, part: str) -> None:
        with torch.inference_mode(self._inference), torch.no_grad():
            self._pack_part(part)

    def _pack_part(self, part: str) -> None:
        path, _, leaf = part.rpartition(".")
        module = self._model.get_submodule(part)
        freed = 4 * sum(tensor.numel() for tensor in module.state_dict().values())  # bytes, once it is packed
        if self._device.type != "cpu":
            setattr(self._model.get_submodule(path), leaf, place(module, self._on_gpu(module), self._device))
        elif isinstance(module, Block):
            precision = self.storage.precision
            module.self_attn = PackedAttention(module.self_attn, precision, self._adapters, self._plain)  # type: ignore[assignment]
            module.mlp = PackedMLP(module.mlp, precision, self._adapters, self._plain)  # type: ignore[assignment]
            self._give_back(freed)
        elif isinstance(module, VitBlock):
            precision = self._beside(module.mlp.fc1)
            module.self_attn = PackedVitAttention(module.self_attn, precision)  # type: ignore[assignment]
            for name in ("fc1", "fc2"):
                setattr(module.mlp, name, _joined((getattr(module.mlp, name),), precision, {}))
        elif part == "llm.embed_tokens":
            self._pack_embedding(self._model.llm)
            self._give_back(freed)
        elif part == "llm.lm_head":
            self._model.llm.lm_head = _joined((module,), self.storage.head, {}, self._plain)  # type: ignore[arg-type, assignment]
        elif isinstance(module, nn.Linear | Levels):
            setattr(self._model.get_submodule(path), leaf, _joined((module,), self._beside(module), {}))

    def _give_back(self, freed: int) -> None:
        """Return freed memory to the system, when it has become much: asking for it anew takes time.

        glibc would keep the gaps that the weights of each block leave behind.
        """
        self._freed += freed
        if self._freed >= _MUCH:
            self._freed = 0
            if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
                trim(0)

    def _on_gpu(self, module: nn.Module) -> Precision:
        """What a part is stored in on a GPU, which computes in the type that it stores: 16 bits, or all in 32."""
        if isinstance(module, Block):
            return self.storage.precision
        is_linear = isinstance(module, nn.Linear | VitBlock)
        half: Precision = "float32" if self.storage.precision == "float32" else "float16"
        return "int8" if is_linear and self.storage.beside_8bit else half

    def _beside(self, layer: nn.Linear | Levels) -> Precision:
        """What a part beside the LLM is stored in."""
        if isinstance(layer, Levels) or self.storage.beside_8bit:
            return "int8"
        wide = self.storage.precision == "float32" or layer.weight.dtype == torch.float32
        return "float32" if wide else "float16"

    def _pack_embedding(self, llm: Decoder) -> None:
        weight = llm.embed_tokens.weight
        if self.storage.precision != "float32":
            llm.embed_tokens = HalfEmbedding(weight)  # type: ignore[assignment]
            if llm.lm_head is None:
                # from the table's 16 bits, as a checkpoint has them: quantized there or here, it is the same
                half = llm.embed_tokens.weight
                llm.lm_head = pack_linear(half, None, self.storage.head, self._plain)  # type: ignore[assignment]
            return
        weight.data = weight.data.float()
        if llm.lm_head is None and not self._plain:
            # Both the table and the head. Column by column, a CPU reads it twice as fast for one token; values stay.
            weight.data = weight.data.t().contiguous().t()


@contextmanager
def packing(model: LlavaModel, target: Target | None) -> Iterator[Packer | None]:
    """A packer that has packed all that arrived when the context ends; None where nothing is to be packed."""
    packer = Packer(model, *target) if target else None
    try:
        yield packer
    finally:
        if packer:
            packer.finish()


def pack_model(model: LlavaModel, storage: Storage) -> None:
    """Pack a model that is loaded, part by part."""
    with packing(model, (storage, torch.device("cpu"))) as packer:
        assert packer is not None
        for name in list(model.state_dict()):
            packer.arrived(name)


def _part(name: str) -> str:
    """The path of the transformer's block that a tensor belongs to, else of the module that has it."""
    parts = name.split(".")
    for blocks in (["llm", "layers"], ["vision", "encoder", "layers"]):
        if parts[: len(blocks)] == blocks:
            return ".".join(parts[: len(blocks) + 1])
    return ".".join(parts[:-1])
