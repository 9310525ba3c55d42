"""Several trained models over one base in memory: their LoRAs stay beside its linear layers; a step runs any of them.

out = W x + B_v A_v x for the rows of variant v (Hu et al. 2021; many at once: Sheng et al. 2023, S-LoRA). Each variant
has its own projector too. Oracle: each variant folded into the base and run alone (tests/engine/test_variants.py).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.decoding.calls import multiplied_in_order
from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.quantization.pack import Factors, PackedAttention, PackedMLP

Span = tuple[str, int, int]  # a variant, and the rows of a step that are its
_UNIT = 16  # of a LoRA's rank


class VariantLinear(nn.Module):
    """A layer of the base, and what each variant adds to it. `spans` is shared by all layers: whose rows a step has."""

    def __init__(self, layer: nn.Module, spans: list[Span]) -> None:
        super().__init__()
        self.layer, self._spans = layer, spans
        self._factors: dict[str, Factors] = {}

    def add(self, variant: str, down: Tensor, up: Tensor) -> None:
        """A variant's A (r, in) and scaled B (out, r); with zeros, r becomes what the compiled product reads."""
        more = -len(down) % _UNIT
        self._factors[variant] = (F.pad(down, (0, 0, 0, more)), F.pad(up, (0, more)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for variant, start, end in self._spans:
            if variant in self._factors:
                down, up = self._factors[variant]
                out[..., start:end, :] += _times(_times(x[..., start:end, :], down), up)
        return out


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """A product that gives each row the same, bit for bit, however many of its request's rows a step has."""
    found = multiplied_in_order(x, weight)
    return F.linear(x, weight) if found is None else found


class Variants:
    """The variants of a model whose decoder is packed. Makes room for LoRAs in its layers."""

    def __init__(self, model: LlavaModel) -> None:
        self._model = model
        self._spans: list[Span] = []
        self._projectors: dict[str, nn.Module] = {}
        self._layers: dict[str, tuple[VariantLinear, list[int]]] = {}  # by the names of what it computes, with sizes
        for index, block in enumerate(model.llm.layers):
            attention, mlp = block.self_attn, block.mlp
            if not isinstance(attention, PackedAttention) or not isinstance(mlp, PackedMLP):
                raise LlavaError("variants share a base on a CPU only")
            config = model.config.llm
            q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
            attention.qkv = self._make_room(attention.qkv, f"layers.{index}.self_attn", "q k v", [q, kv, kv])
            attention.out = self._make_room(attention.out, f"layers.{index}.self_attn", "o", [config.hidden_size])
            inner = config.intermediate_size
            mlp.gate_up = self._make_room(mlp.gate_up, f"layers.{index}.mlp", "gate up", [inner, inner])
            mlp.down = self._make_room(mlp.down, f"layers.{index}.mlp", "down", [config.hidden_size])

    def add(self, variant: str, projector: nn.Module, factors: Mapping[str, Factors]) -> None:
        """A variant: its projector, and its LoRA by the names of the decoder's layers. Raises LlavaError."""
        left = dict(factors)
        for names, (layer, sizes) in self._layers.items():
            own = [left.pop(name, None) for name in names.split()]
            if any(own):
                pairs = [pair or (torch.empty(0), torch.empty(size, 0)) for pair, size in zip(own, sizes, strict=True)]
                down, up = torch.cat([a for a, _ in pairs if len(a)]), torch.block_diag(*(b for _, b in pairs))  # type: ignore[no-untyped-call]
                if [len(b) for _, b in pairs] != sizes:
                    raise LlavaError(f"'{variant}': its LoRA does not fit the base at {names}")
                layer.add(variant, down, up)
        if left:
            raise LlavaError(f"'{variant}': its LoRA is for layers that the base has not: {next(iter(left))}")
        self._projectors[variant] = projector

    def run(self, spans: Sequence[Span]) -> None:
        """What the next step's rows are."""
        self._spans[:] = spans

    def encode(self, variant: str) -> None:
        """Whose projector encodes the next pictures."""
        self._model.projector = self._projectors[variant]

    def _make_room(self, layer: nn.Module, place: str, names: str, sizes: list[int]) -> VariantLinear:
        made = VariantLinear(layer, self._spans)
        self._layers[" ".join(f"{place}.{name}_proj" for name in names.split())] = (made, sizes)
        return made
