"""Quantized checkpoints: a native folder whose linear layers are stored as levels and scales, ready to be packed.

`config.json` says `storage`; a layer NAME has `NAME.levels`, `NAME.scales`, for 4 bits `NAME.middles`, and `NAME.bias`
where it has one. Loading gives the very model that quantizing on load gives, from a smaller file and in less time.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from llava.config import LlavaConfig, Precision, Storage
from llava.models.llava import LlavaModel
from llava.models.meta import on_meta
from llava.quantization.linears import Levels, group_of, quantize, stored_precision

_HALF = ("llm.embed_tokens.weight", "llm.lm_head.weight")  # are packed in half precision in any case


def quantized_tensors(
    tensors: Iterable[tuple[str, Tensor]], config: LlavaConfig, storage: Storage
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model with this config as its quantized checkpoint has them."""
    with on_meta():
        layers = _layers(LlavaModel(config), storage)
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        precision = layers[owner][1] if owner in layers else None
        if precision is None or leaf != "weight":
            yield name, tensor.half() if name in _HALF else tensor
            continue
        levels = quantize(tensor, None, precision)
        for part in ("levels", "scales", "middles"):
            if (values := getattr(levels, part)) is not None:
                yield f"{owner}.{part}", values


def expect_levels(model: LlavaModel, storage: Storage) -> None:
    """Put levels, on `meta`, in the place of the layers that a quantized checkpoint stores so."""
    for name, (layer, precision) in _layers(model, storage).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _empty_levels(layer, precision))


def _empty_levels(layer: nn.Linear, precision: Precision) -> Levels:
    outputs, inputs = layer.weight.shape
    with torch.device("meta"):
        bias = None if layer.bias is None else torch.empty(outputs)
        if stored_precision(inputs, precision) == "int8":
            return Levels(torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs), None, bias)
        groups = torch.empty(outputs, inputs // group_of(inputs), dtype=torch.bfloat16)
        return Levels(torch.empty(outputs, inputs // 2, dtype=torch.uint8), groups, groups.clone(), bias)


def _layers(model: LlavaModel, storage: Storage) -> dict[str, tuple[nn.Linear, Precision]]:
    """The linear layers that are stored as levels, by name, and in how many bits each."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    blocks = {name: layer for name, layer in linears.items() if name.startswith("llm.layers.")}
    found: dict[str, tuple[nn.Linear, Precision]] = {n: (layer, storage.precision) for n, layer in blocks.items()}
    if storage.beside_8bit:
        found |= {name: (layer, "int8") for name, layer in linears.items() if name not in blocks}
    return found
