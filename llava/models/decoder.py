"""A LLaMA-shaped decoder: Llama, Vicuna, Yi, Mistral, Qwen2, Qwen3, SmolLM. Parameter names are Hugging Face's.

It maps embeddings to hidden states; `logits` is a separate step, so that callers compute it only where needed.
Oracle: transformers' models of these families (tests/models/test_decoder.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import DecoderConfig
from llava.decoding.calls import attended, normed
from llava.models.cache import CacheBatch
from llava.models.rope import rope_tables, rotate


class RMSNorm(nn.RMSNorm):
    """Zhang and Sennrich 2019; for inference on a CPU by the compiled function, as in a compiled step."""

    def forward(self, x: Tensor) -> Tensor:
        found = None if self.eps is None else normed(x, self.weight, self.eps)
        return super().forward(x) if found is None else found


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over all tokens or a sliding window."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.sliding_window = config.sliding_window

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        out: Tensor = self.o_proj(self.attend(self.project(x), rope, batch, layer))
        return out

    def project(self, x: Tensor) -> Tensor:
        """(B, T, D) to q, k and v in one (B, T, (H + 2 Hkv) * Dh)."""
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)

    def attend(self, qkv: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        """What lies between the projections: q, k and v in one (B, T, (H + 2 Hkv) * Dh) to (B, T, H * Dh)."""
        B, T, _ = qkv.shape
        heads = qkv.view(B, T, -1, self.head_dim)
        turned = self.num_heads + self.num_kv_heads
        qk, v = heads[:, :, :turned], heads[:, :, turned:].transpose(1, 2)  # v (B, Hkv, T, Dh)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :, : self.num_heads]), self.k_norm(qk[:, :, self.num_heads :])), dim=2)
        qk = rotate(qk, *rope).transpose(1, 2)
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        y = attended(q, k, v, 0, self.sliding_window) if batch is None else batch.attend(layer, q, k, v)
        if y is None:
            mask = None
            if self.sliding_window is not None and self.sliding_window < T:
                mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril().triu(1 - self.sliding_window)
            if mask is None and q.device.type == "cpu" and q.requires_grad and _in_bfloat16(q):
                y = _causal_attention(q, k, v)
            else:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return y.transpose(1, 2).reshape(B, T, -1)


def _in_bfloat16(q: Tensor) -> bool:
    """Whether products of q are in bfloat16; rotated by angles in float32 it is itself in float32 under autocast."""
    return q.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (B, H, T, Dh) over k and v (B, Hkv, T, Dh) as plain products, for training in bfloat16 on a CPU.

    PyTorch 2.13's fused kernel takes 14 ms there for a backward pass (16 rows of 80 tokens, 9 heads) that takes 2 here.
    """
    B, H, T, Dh = q.shape
    queries = q.reshape(B, k.shape[1], -1, Dh)  # the queries that share a key stand below each other
    scores = (queries @ k.transpose(-1, -2)).view(B, H, T, T).float() / Dh**0.5
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1).to(v.dtype)
    out: Tensor = weights.view(B, k.shape[1], -1, T) @ v
    return out.view(B, H, T, Dh)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: CacheBatch | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, batch, layer)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embeddings in, hidden states out; `lm_head` shares the embedding's weight where the config ties them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        # given a weight, the constructor does not fill in random numbers, at length, that loading overwrites
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x: Tensor, batch: CacheBatch | None = None) -> Tensor:
        """Run all blocks over embeddings x (B, T, D). Returns normalised hidden states (B, T, D).

        Without a cache each row is a sequence from its start. With one, B is 1 and the row holds the new tokens of all
        sequences of the batch, whose keys and values are stored.
        """
        if batch is None:
            rope = rope_tables(torch.arange(x.shape[1], device=x.device), self.config, x.dtype)
        else:
            rope = batch.rope(self.config, x.device, x.dtype)
        for layer, block in enumerate(self.layers):
            x = block(x, rope, batch, layer)
        if batch is not None:
            batch.finish()
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) to scores over the vocabulary (..., V)."""
        scores: Tensor = F.linear(hidden, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(hidden)
        return scores
