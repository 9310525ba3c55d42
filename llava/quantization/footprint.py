"""How much memory a model needs in each precision, from its configuration alone."""

from dataclasses import dataclass

import torch
from torch import nn

from llava.config import LlavaConfig
from llava.models.decoder import Decoder
from llava.models.llava import LlavaModel
from llava.quantization.linears import GROUP, Precision

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")
_PROCESS = 360_000_000  # bytes of Python, PyTorch and the tokenizer, before any weight (benchmarks/memory.py)

_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "int8": 1.0,  # and a scale for each output, which is nothing beside it
    "int4": 0.5 + 2 * 2 / GROUP,  # and two bfloat16 numbers for each group
}


@dataclass(frozen=True)
class Part:
    """A part of a model: its parameters, and the bytes that they take as they are stored."""

    parameters: int
    bytes: int


def footprint(config: LlavaConfig, precision: Precision) -> dict[str, Part]:
    """The vision encoder, the projector and the LLM on a CPU, as `llava.quantization.pack` stores them."""
    with torch.device("meta"):
        model = LlavaModel(config)
    half: Precision = "float32" if precision == "float32" else "float16"
    return {
        "vision encoder": _beside(model.vision, half),
        "projector": _beside(model.projector, half),
        "LLM": _decoder(model.llm, precision, half),
    }


def peak_bytes(config: LlavaConfig, precision: Precision) -> int:
    """The most memory that the process holds while it loads: with its largest matrix in float32, to be packed."""
    largest = config.llm.hidden_size * max(config.llm.vocab_size, 2 * config.llm.intermediate_size)
    return sum(part.bytes for part in footprint(config, precision).values()) + 4 * largest + _PROCESS


def cache_bytes(config: LlavaConfig) -> int:
    """Bytes of keys and values a token, in float32."""
    llm = config.llm
    return 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * 4


def _beside(module: nn.Module, precision: Precision) -> Part:
    linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    count = sum(parameter.numel() for parameter in module.parameters())
    return Part(count, int(linear * _BYTES[precision] + (count - linear) * 4))


def _decoder(llm: Decoder, precision: Precision, half: Precision) -> Part:
    count = sum(parameter.numel() for parameter in llm.parameters())
    table = llm.embed_tokens.weight.numel()
    blocks = sum(layer.weight.numel() for layer in llm.layers.modules() if isinstance(layer, nn.Linear))
    tables = 1 if llm.lm_head is None and precision == "float32" else 2  # packed, a tied head is a copy
    rest = count - blocks - table * (1 if llm.lm_head is None else 2)
    return Part(count, int(blocks * _BYTES[precision] + tables * table * _BYTES[half] + rest * 4))
