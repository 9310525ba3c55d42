"""A model's parts on a GPU, in 16, 8 or 4 bits: linear layers swapped, from outside, for those of bitsandbytes.

8 bits are LLM.int8() (Dettmers et al. 2022), 4 bits NF4 (Dettmers et al. 2023): what the original's `--load-8bit` and
`--load-4bit` are. Never run on a GPU so far: bitsandbytes runs on CPUs too, where tests compare it with its formulas.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava.config import Precision
from llava.errors import LlavaError

if TYPE_CHECKING:
    from types import ModuleType

_OUTLIERS = 6.0  # inputs of at least so much stay in 16 bits (Dettmers et al. 2022, section 3.2)


def place(module: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """A part on the GPU, its linear layers in this precision, the rest in 16 bits (or 32, where asked for)."""
    module.to(dtype=torch.float32 if precision == "float32" else torch.float16)
    if precision in ("int8", "int4"):
        bitsandbytes = _library()
        if type(module) is nn.Linear:
            module = _quantized(bitsandbytes, module, precision)
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, _quantized(bitsandbytes, child, precision))
    return module.to(device)


def _quantized(bitsandbytes: "ModuleType", layer: nn.Linear, precision: Precision) -> nn.Module:
    """A layer of bitsandbytes with this one's weight, which is rounded when it is moved to its device."""
    biased, weight = layer.bias is not None, layer.weight.detach()
    new: Any
    if precision == "int8":
        new = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, biased, has_fp16_weights=False, threshold=_OUTLIERS
        )
        new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, biased, compute_dtype=weight.dtype, quant_type="nf4"
        )
        new.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
    if biased:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    module: nn.Module = new
    return module


def _library() -> "ModuleType":
    try:
        import bitsandbytes
    except ImportError:
        raise LlavaError("8 and 4 bits on a GPU need bitsandbytes: pip install 'llava[gpu]'") from None
    module: ModuleType = bitsandbytes
    return module
