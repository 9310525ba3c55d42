"""A base LLM from a GGUF file: configuration, dequantized weights, tokenizer, chat template.

Format: ggml-org/ggml docs/gguf.md. Reading and dequantization are the `gguf` package's.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
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


@dataclass(frozen=True)
class GgufLlm:
    """An open GGUF file of the `llama` architecture. Its weights are read only when asked for."""

    path: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    chat_template: str | None  # Jinja, as the file has it
    reader: gguf.GGUFReader

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The decoder's parameters one by one, dequantized to float32, under Hugging Face's names."""
        for item in self.reader.tensors:
            name = _parameter_name(item.name)
            weight = torch.tensor(gguf.dequantize(item.data, item.tensor_type), dtype=torch.float32)
            if name.endswith("q_proj.weight"):
                weight = _undo_rope_order(weight, self.config.num_heads)
            elif name.endswith("k_proj.weight"):
                weight = _undo_rope_order(weight, self.config.num_kv_heads)
            yield name, weight.contiguous()


def open_gguf(path: Path) -> GgufLlm:
    """Open a GGUF file. Raises LlavaError when it is missing, damaged, truncated or of another architecture."""
    if not path.is_file():
        raise LlavaError(f"{path}: weight file not found")
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        return GgufLlm(
            path, _decoder_config(fields, reader), _tokenizer(fields), fields.get("tokenizer.chat_template"), reader
        )
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, OSError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise LlavaError(f"{path}: damaged, truncated or not a LLaMA-shaped GGUF file ({reason})") from None


def _decoder_config(fields: dict[str, Any], reader: gguf.GGUFReader) -> DecoderConfig:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise LlavaError(f"GGUF architecture '{architecture}' is not supported; expected 'llama'")
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
        tie_embeddings=all(item.name != "output.weight" for item in reader.tensors),
    )


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    model, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
    if (model, pre) != ("gpt2", "smollm"):
        raise LlavaError(f"GGUF tokenizer '{model}' with pre-tokenizer '{pre}' is not supported; expected gpt2, smollm")
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
        raise LlavaError(f"GGUF tensor '{name}' is not part of a LLaMA-shaped decoder") from None


def _undo_rope_order(weight: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two halves of each head's rotary dimensions; put them back one after the other."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
