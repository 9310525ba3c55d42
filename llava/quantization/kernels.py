"""Which linear kernel computes a precision on this machine: the fastest that can, measured once and remembered."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llava.config import Precision
from llava.decoding.calls import reads
from llava.measure import fastest, least
from llava.quantization.linears import (
    INT4_BLOCK,
    Float16Linear,
    Float32Linear,
    HalfLinear,
    Int4Linear,
    Int8Linear,
    Levels,
    Plain8Linear,
    PlainLinear,
    WeightOnly8Linear,
    dequantized,
    quantize,
)

# The shape of the matrix that kernels are measured with: one that the compiled function does not read (`reads`).
_OUTPUTS, _INPUTS = 1024, 1008
_DECODED = 64  # tokens of an answer, one by one, that are measured
_READ = 577  # and of what is read before it: as many as CLIP has of a picture
_WORTH = (
    3.0  # times longer that prompts may take in the layout from which the compiled step decodes three times as fast
)

WholeKernel = Callable[[Tensor, Tensor | None], nn.Module]  # of weight (out, in) and bias
LevelKernel = Callable[[Levels], nn.Module]


def pack_levels(stored: Levels, plain: bool = False) -> nn.Module:
    """A layer that computes with this weight, for float32 x (..., in) on the CPU; in more bits where no kernel fits.

    plain: the compiled step is to read the weight too, and computes few rows. 4 bits are never plain; 8 bits always are
    where the compiled function for many rows reads them, elsewhere where PyTorch reads prompts nearly as fast so.
    """
    if stored.middles is not None:
        fits = stored.shape[0] % INT4_BLOCK == 0
        return Int4Linear(stored) if fits else pack_linear(dequantized(stored), stored.bias, "int8")
    if reads(stored.levels):
        return Plain8Linear(stored)
    return _LEVEL_KERNELS[_fastest("int8", plain)](stored)


def pack_linear(weight: Tensor, bias: Tensor | None, precision: Precision, plain: bool = False) -> nn.Module:
    """A layer that computes F.linear(x, weight, bias) for float32 x (..., in) on the CPU. plain: as for `pack_levels`.

    Where this build of PyTorch or the weight's shape rules a precision out, the layer has the next higher one.
    """
    if precision in ("int8", "int4"):
        return pack_levels(quantize(weight, bias, precision), plain)
    if plain:
        return (HalfLinear if precision == "float16" else PlainLinear)(weight, bias)
    if precision == "float16" and _has_fbgemm():
        return Float16Linear(weight, bias)
    return _WHOLE_KERNELS[_fastest("float32")](weight, bias)


_WHOLE_KERNELS: dict[str, WholeKernel] = {"onednn": Float32Linear, "plain": PlainLinear}
_LEVEL_KERNELS: dict[str, LevelKernel] = {"fbgemm": Int8Linear, "int8pack": WeightOnly8Linear, "plain": Plain8Linear}


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _candidates(precision: Precision, plain: bool = False) -> dict[str, Callable[[], nn.Module]]:
    """What can compute a precision here: names, and layers to be measured."""
    weight = torch.randn(_OUTPUTS, _INPUTS, generator=torch.Generator().manual_seed(0))
    if precision == "int8":
        stored = quantize(weight, None, "int8")
        names = ["plain", "fbgemm"] if plain else ["fbgemm", "int8pack"]
        names = [name for name in names if name != "fbgemm" or _has_fbgemm()]
        return {name: functools.partial(_LEVEL_KERNELS[name], stored) for name in names}
    names = [name for name in _WHOLE_KERNELS if name != "onednn" or torch._C._has_mkldnn]
    return {name: functools.partial(_WHOLE_KERNELS[name], weight, None) for name in names}


@functools.cache
def _fastest(precision: Precision, plain: bool = False) -> str:
    """The name of the kernel. plain: the compiled step decodes what can be plain."""

    def cost(name: str, layer: Callable[[], nn.Module]) -> float:
        seconds = _seconds(layer(), 0 if plain else _DECODED)
        return seconds / _WORTH if plain and name == "plain" else seconds

    costs = {name: functools.partial(cost, name, layer) for name, layer in _candidates(precision, plain).items()}
    return fastest(f"{precision}, compiled" if plain else precision, costs)


def _seconds(layer: nn.Module, decoded: int = _DECODED) -> float:
    """How long a prompt and an answer of so many tokens take, at best."""
    one, many = torch.randn(1, _INPUTS), torch.randn(_READ, _INPUTS)
    return decoded * least(lambda: layer(one), 20) + least(lambda: layer(many), 3)
