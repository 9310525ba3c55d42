"""Several trained models over one base in memory: their LoRAs stay beside its linear layers; a step runs any of them.

out = W x + B_v A_v x for the rows of variant v (Hu et al. 2021; many at once: Sheng et al. 2023, S-LoRA). Each variant
has its own projector too. Oracle: each variant folded into the base and run alone (tests/engine/test_variants.py).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.quantization.pack import Factors, LowRank, PackedAttention, PackedMLP

Span = tuple[str, int, int]  # a variant, and the rows of a step that are its


class VariantLinear(nn.Module):
    """A layer of the base, and what each variant adds to it. `spans` is shared by all layers: whose rows a step has."""

    def __init__(self, layer: nn.Module, spans: list[Span]) -> None:
        super().__init__()
        self.layer, self._spans = layer, spans
        self._loras: dict[str, LowRank] = {}

    def add(self, variant: str, pairs: Sequence[Factors]) -> None:
        """A variant's A (r, in) and scaled B (out, r), for some outputs each, one after the other."""
        self._loras[variant] = LowRank(pairs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for variant, start, end in self._spans:
            if variant in self._loras:
                self._loras[variant].add_to(out[..., start:end, :], x[..., start:end, :])
        return out


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
            if given := [pair for pair in own if pair]:
                nothing = torch.empty(0, given[0][0].shape[1])
                pairs = [pair or (nothing, torch.empty(size, 0)) for pair, size in zip(own, sizes, strict=True)]
                if [len(up) for _, up in pairs] != sizes:
                    raise LlavaError(f"'{variant}': its LoRA does not fit the base at {names}")
                layer.add(variant, pairs)
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
