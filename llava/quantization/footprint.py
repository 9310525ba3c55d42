"""How much memory a model needs, as it is stored, from its configuration alone."""

import functools
from dataclasses import dataclass

from torch import nn

from llava.config import LlavaConfig, Precision, Storage
from llava.decoding.build import readable
from llava.models.decoder import Decoder
from llava.models.llava import LlavaModel
from llava.models.meta import on_meta
from llava.quantization.linears import group_of, stored_precision
from llava.quantization.pack import WORKERS

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")
_PROCESS = 360_000_000  # bytes of Python, PyTorch and the tokenizer, before any weight (benchmarks/memory.py)


@dataclass(frozen=True)
class Part:
    """A part of a model: its parameters, and the bytes that they take as they are stored."""

    parameters: int
    bytes: int


def footprint(config: LlavaConfig, storage: Storage, adapter: int = 0) -> dict[str, Part]:
    """The vision encoder, the projector and the LLM on a CPU, as `llava.quantization.pack` stores them.

    adapter: parameters of a LoRA of the LLM; it stays beside weights of 4 bits, and is folded into all others.
    """
    model = _without_weights(config.model_dump_json())
    half: Precision = "float32" if storage.precision == "float32" else "float16"
    beside: Precision = "int8" if storage.beside_8bit else half
    parts = {
        "vision encoder": _beside(model.vision, beside),
        "projector": _beside(model.projector, beside),
        "LLM": _decoder(model.llm, storage, half),
    }
    if storage.precision == "int4" and adapter:
        llm = parts["LLM"]
        parts["LLM"] = Part(llm.parameters + adapter, llm.bytes + 4 * adapter)
    return parts


@functools.lru_cache(maxsize=8)  # a model is asked about in every precision
def _without_weights(config: str) -> LlavaModel:
    with on_meta():
        return LlavaModel(LlavaConfig.model_validate_json(config))


def peak_bytes(config: LlavaConfig, storage: Storage, adapter: int = 0) -> int:
    """The most memory that the process holds while it loads: each worker has a matrix in float32, to be packed."""
    llm = config.llm
    matrices = [2 * llm.hidden_size * llm.intermediate_size] * llm.num_layers
    matrices += [llm.hidden_size * llm.vocab_size] * (1 if llm.tie_embeddings else 2)
    packed = 4 * sum(sorted(matrices)[-WORKERS:])
    return sum(part.bytes for part in footprint(config, storage, adapter).values()) + packed + _PROCESS


def cache_bytes(config: LlavaConfig) -> int:
    """Bytes of keys and values a token, in float32."""
    llm = config.llm
    return 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * 4


def _weight_bytes(layer: nn.Linear, precision: Precision) -> float:
    """Of a packed linear layer's weight."""
    inputs = layer.in_features
    precision = stored_precision(inputs, precision)
    if precision == "int4":  # and two bfloat16 numbers for each group
        return layer.weight.numel() * (0.5 + 2 * 2 / group_of(inputs))
    each = {"float32": 4, "float16": 2, "int8": 1}[precision]  # scales of int8 are nothing beside it
    return layer.weight.numel() * each


def _beside(module: nn.Module, precision: Precision) -> Part:
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    count = sum(parameter.numel() for parameter in module.parameters())
    rest = count - sum(layer.weight.numel() for layer in linears)
    return Part(count, int(sum(_weight_bytes(layer, precision) for layer in linears) + rest * 4))


def _decoder(llm: Decoder, storage: Storage, half: Precision) -> Part:
    count = sum(parameter.numel() for parameter in llm.parameters())
    table = llm.embed_tokens.weight.numel()
    linears = [layer for layer in llm.layers.modules() if isinstance(layer, nn.Linear)]
    width = 4 if half == "float32" else 2
    plain = storage.head == "float16" and storage.precision != "int4" and readable(llm.config)
    shared = llm.lm_head is None and (storage.head == "float32" or plain)  # packed otherwise, a tied head is a copy
    head = 0 if shared else table * {"float32": 4, "float16": 2}.get(storage.head, 1)
    rest = count - sum(layer.weight.numel() for layer in linears) - table * (1 if llm.lm_head is None else 2)
    blocks = sum(_weight_bytes(layer, storage.precision) for layer in linears)
    return Part(count, int(blocks + table * width + head + rest * 4))
