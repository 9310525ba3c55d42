"""A base LLM from a GGUF file: configuration, dequantized weights, tokenizer, chat template.

Format: ggml-org/ggml docs/gguf.md, version 3; blocks of weights: its src/ggml-common.h. The header is read here, as the
`gguf` package's reader takes seconds for a vocabulary of 49,152; so are the kinds of weights that the embedded model
has, of which importing the package and its formulas in numpy took a third of the time to a first answer. It reads all
other kinds, and is the oracle of ours (tests/checkpoints/test_gguf.py).
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava.config import DecoderConfig
from llava.errors import LlavaError
from llava.tokenizer import Tokenizer, bpe_tokenizer

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN, _USER_TOKEN = 3, 4  # tokenizer.ggml.token_type


# value type -> struct format; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")

_F32, _Q4_1, _Q8_0 = 0, 3, 8  # kinds of weights (GGMLQuantizationType)
_BLOCKS = {_F32: (1, 4), _Q4_1: (32, 20), _Q8_0: (32, 34)}  # weights in a block, and its bytes
_AT_ONCE = 2**20  # weights that are dequantized in one go
_LOWER_HALVES = 0x0F0F0F0F0F0F0F0F  # of eight bytes


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor's bytes are in the file. shape: as torch has it, outermost dimension first."""

    name: str
    shape: tuple[int, ...]
    kind: int  # of its blocks
    offset: int
    size: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file, and what tensors it holds."""

    fields: dict[str, Any]
    tensors: list[GgufTensor]


@dataclass(frozen=True)
class GgufLlm:
    """A GGUF file of the `llama` architecture. Its weights are read only when asked for."""

    path: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    chat_template: str | None  # Jinja, as the file has it
    header: GgufHeader = field(repr=False)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The decoder's parameters one by one, dequantized to float32, under Hugging Face's names."""
        for item in self.header.tensors:
            name = _parameter_name(item.name)
            raw = np.fromfile(self.path, np.uint8, item.size, offset=item.offset)
            if len(raw) < item.size:
                raise LlavaError(f"{self.path}: damaged or truncated GGUF file; fetch it again")
            try:
                weight = _dequantized(torch.from_numpy(raw), item.kind).view(item.shape)
                if name.endswith("q_proj.weight"):
                    weight = _undo_rope_order(weight, self.config.num_heads)
                elif name.endswith("k_proj.weight"):
                    weight = _undo_rope_order(weight, self.config.num_kv_heads)
            except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError) as error:
                raise LlavaError(f"{self.path}: damaged GGUF file ({item.name!r}: {error}); fetch it again") from None
            yield name, weight.contiguous()


def _dequantized(raw: Tensor, kind: int) -> Tensor:
    """The weights in a tensor's bytes, one after the other, in float32."""
    if kind == _F32:
        return raw.view(torch.float32)
    weights, size = _block(kind)
    blocks = raw.view(-1, size)
    out, step = torch.empty(len(blocks), weights, dtype=torch.float32), max(1, _AT_ONCE // weights)
    for part, place in zip(torch.split(blocks, step), torch.split(out, step), strict=True):
        if kind == _Q4_1:  # scale, least, and 16 bytes: the first 16 weights in their lower halves
            scale, least = part[:, :4].contiguous().view(torch.float16).float().T[..., None]
            pairs = part[:, 4:].contiguous().view(torch.int64)
            levels = torch.stack((pairs & _LOWER_HALVES, (pairs >> 4) & _LOWER_HALVES), dim=1)
            place.copy_(levels.view(torch.uint8).view(-1, weights)).mul_(scale).add_(least)
        elif kind == _Q8_0:  # scale, and 32 bytes with signs
            place.copy_(part[:, 2:].view(torch.int8))
            place.mul_(part[:, :2].contiguous().view(torch.float16).float())
        else:
            import gguf

            # rows mean nothing to blocks: in one long row, the package takes them all at once
            row = gguf.dequantize(part.numpy().reshape(1, -1), gguf.GGMLQuantizationType(kind))
            place.copy_(torch.from_numpy(row).view(-1, weights))
    return out.view(-1)


def _block(kind: int) -> tuple[int, int]:
    """Weights in a block of a kind, and its bytes. Raises ValueError for an unknown kind."""
    if kind in _BLOCKS:
        return _BLOCKS[kind]
    import gguf  # takes long

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return weights, size


def open_gguf(path: Path) -> GgufLlm:
    """Open a GGUF file. Raises LlavaError when it is missing, damaged, truncated or of another architecture."""
    if not path.is_file():
        raise LlavaError(f"{path}: weight file not found")
    try:
        header = read_header(path)
        fields = header.fields
        template = fields.get("tokenizer.chat_template")
        return GgufLlm(path, _decoder_config(header), _tokenizer(fields), template, header)
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise LlavaError(f"{path}: damaged, truncated or not a LLaMA-shaped GGUF file ({reason})") from None


def read_header(path: Path) -> GgufHeader:
    """Everything before the tensors' data. Raises ValueError or struct.error when the file is not whole."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        magic, version = reader.take("<4sI")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"expected GGUF version 3, found {magic!r} version {version}")
        tensor_count, field_count = reader.take("<QQ")
        fields = {reader.string(): reader.value(*reader.take("<I")) for _ in range(field_count)}
        infos = []
        for _ in range(tensor_count):
            name, dimensions = reader.string(), reader.take("<I")[0]
            infos.append((name, reader.take(f"<{dimensions}Q")[::-1], *reader.take("<IQ")))
        alignment = int(fields.get("general.alignment", 32))
        start = -(-reader.position // alignment) * alignment
        tensors = []
        for name, shape, kind, offset in infos:
            block, block_bytes = _block(kind)
            size = math.prod(shape) // block * block_bytes
            if start + offset + size > len(data):
                raise ValueError(f"tensor {name!r} ends after the end of the file")
            tensors.append(GgufTensor(name, shape, kind, start + offset, size))
        return GgufHeader(fields, tensors)


class _Reader:
    """Reads values one after the other. A length beyond the end of the file raises before anything is allocated."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return values

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """So many texts, in one loop: a vocabulary has a hundred thousand."""
        data, position, size, length_at, found = self.data, self.position, len(self.data), _LENGTH.unpack_from, []
        for _ in range(count):
            end = position + 8 + length_at(data, position)[0]
            if end > size:
                raise ValueError("a text ends after the end of the file")
            found.append(data[position + 8 : end].decode("utf-8"))
            position = end
        self.position = position
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take("<" + _SCALARS[kind])[0]
        item, count = self.take("<IQ")
        if count > len(self.data):
            raise ValueError("an array ends after the end of the file")
        if item == _STRING:
            return self.strings(count)
        return list(self.take(f"<{count}{_SCALARS[item]}"))


def _decoder_config(header: GgufHeader) -> DecoderConfig:
    fields = header.fields
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise LlavaError(f"GGUF architecture {architecture!r} is not supported; expected 'llama'")
    hidden, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
    return DecoderConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden,
        intermediate_size=int(fields["llama.feed_forward_length"]),
        num_layers=int(fields["llama.block_count"]),
        num_heads=heads,
        num_kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
        head_dim=int(fields.get("llama.rope.dimension_count", hidden // heads)),
        rope_theta=float(fields.get("llama.rope.freq_base", 10000.0)),
        # the file has a float32 (9.99999974e-06); its authors wrote the nearest short decimal
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        max_positions=int(fields["llama.context_length"]),
        tie_embeddings=all(item.name != "output.weight" for item in header.tensors),
    )


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    model, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if (model, pre) != ("gpt2", "smollm"):
        raise LlavaError(f"GGUF tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; expected gpt2, smollm")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    return bpe_tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[(left, right) for left, right in (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])],
        special=[token for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL_TOKEN, _USER_TOKEN)],
        split_digits=True,
        bos_id=int(fields["tokenizer.ggml.bos_token_id"]) if fields.get("tokenizer.ggml.add_bos_token") else None,
        eos_id=int(fields["tokenizer.ggml.eos_token_id"]),
    )


def _parameter_name(name: str) -> str:
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    top["output.weight"] = "lm_head.weight"
    if name in top:
        return top[name]
    try:
        _, layer, part, kind = name.split(".")
        return f"layers.{layer}.{_NAMES[part]}.{kind}"
    except (ValueError, KeyError):
        raise LlavaError(f"GGUF tensor {name!r} is not part of a LLaMA-shaped decoder") from None


def _undo_rope_order(weight: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two halves of each head's rotary dimensions; put them back one after the other."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
