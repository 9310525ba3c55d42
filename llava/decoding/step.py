"""A packed model as the compiled step reads it: tables of the addresses of its own weights. Nothing is copied."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llava.config import DecoderConfig
from llava.decoding import build, layout
from llava.decoding.layout import FLOAT16, FLOAT32, INT8, INT8_BYTES
from llava.models.cache import KVCache
from llava.models.llava import LlavaModel
from llava.models.rope import rope_tables
from llava.quantization.linears import HalfLinear, Plain8Linear, PlainLinear
from llava.quantization.pack import PackedAttention, PackedMLP

MOST_ROWS = 160  # of a step: the answers and parts of prompts that the scheduler lets run together
_LINE = 16  # numbers in a line of the cache, where buffers begin
_KINDS: dict[type[nn.Module], int] = {PlainLinear: FLOAT32, HalfLinear: FLOAT16, Plain8Linear: INT8}


def covers(model: LlavaModel) -> bool:
    """Whether the compiled step can run this model: packed on a CPU, in layouts that are read as they are."""
    llm = model.llm
    if not build.readable(llm.config) or not llm.embed_tokens.weight.is_contiguous():
        return False
    layers: list[nn.Module] = [] if llm.lm_head is None else [llm.lm_head]
    for block in llm.layers:
        attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
        if not isinstance(attention, PackedAttention) or not isinstance(mlp, PackedMLP):
            return False
        layers += [attention.qkv, attention.out, mlp.gate_up, mlp.down]
    return all(type(layer) in _KINDS for layer in layers)


class Step:
    """A model's decoding steps, of MOST_ROWS rows at most. It holds buffers, so it serves one thread at a time."""

    def __init__(self, model: LlavaModel, run: build.Run) -> None:
        """The model must be one that `covers` is true of; its weights stay where they are."""
        config, llm = model.config.llm, model.llm
        self._config, self._run = config, run
        self._kept: list[Tensor] = []  # what tables have the addresses of
        words: list[int] = []
        for block in llm.layers:
            parts: Any = block  # of the classes that `covers` has seen
            attention, mlp = parts.self_attn, parts.mlp
            inner = attention.inner
            norms = (parts.input_layernorm, parts.post_attention_layernorm, inner.q_norm, inner.k_norm)
            words += [0 if norm is None else self._address(norm.weight) for norm in norms]
            for layer in (attention.qkv, attention.out, mlp.gate_up, mlp.down):
                words += self._linear(layer)
        table = llm.embed_tokens.weight
        head = self._table(self._linear(PlainLinear(table, None) if llm.lm_head is None else llm.lm_head))
        shape = [config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim]
        epsilon = torch.tensor([config.norm_eps], dtype=torch.float32)
        shape += [config.intermediate_size, config.vocab_size, self._address(epsilon)]
        norm, embedding, layers = self._address(llm.norm.weight), self._address(table), self._table(words)
        half = int(table.dtype == torch.float16)
        window = config.sliding_window or 0
        self._whole = self._table([config.num_layers, *shape, norm, embedding, half, layers, head, window])
        self._head = self._table([0, *shape, 0, 0, half, layers, head, window])
        self._cosines, self._sines = torch.empty(2, 0, config.head_dim, dtype=torch.float32, device="cpu")

        self._threads = torch.get_num_threads()
        shared, private = _sizes(config, self._threads)
        memory = torch.empty(shared + self._threads * private + _LINE, dtype=torch.float32, device="cpu")
        start = -memory.data_ptr() // 4 % _LINE
        self._hidden = memory[start : start + MOST_ROWS * config.hidden_size].view(MOST_ROWS, -1)
        place = self._address(self._hidden)
        self._rows = torch.zeros(MOST_ROWS, layout.ROW, dtype=torch.long)
        own = [place + shared * 4, private * 4]
        self._call = torch.tensor([0, 0, self._rows.data_ptr(), 0, place, *own, 0])
        self._parts = memory[:0]

    def run(
        self, ids: Sequence[int], images: Tensor, caches: Sequence[KVCache], counts: Sequence[int], last: Sequence[int]
    ) -> Tensor:
        """Scores (len(last), V) after those of the ids that `last` has the places of, in rising order.

        The ids are `counts[i]` new tokens of the sequence in `caches[i]`; negative ones stand for the rows of `images`
        (n, D) in their order.
        """
        rows, scored, tiles = list[list[int]](), set(last), 0
        self._reach(max(cache.length + count for cache, count in zip(caches, counts, strict=True)))
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(cache.length + count)
            tiles += (cache.length + count) // layout.TILE_KEYS * count + count
            for slot in range(cache.length, cache.length + count):
                turns = [table.data_ptr() + slot * self._config.head_dim * 4 for table in (self._cosines, self._sines)]
                place = [cache.data.data_ptr(), cache.slots, slot, *turns]
                rows.append([ids[len(rows)], *place, len(rows) in scored, cache.length + count - slot])
        if len(rows) <= layout.APART:
            self._have_parts(tiles)
        self._rows[: len(rows)] = torch.tensor(rows)
        if len(images):
            self._hidden[: len(rows)][torch.tensor(ids) < 0] = images.float()
        scores = self._scores(self._whole, len(rows), len(last))
        for cache, count in zip(caches, counts, strict=True):
            cache.length += count
        return scores

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (rows, D) as the decoder gives them to scores (rows, V)."""
        self._hidden[: len(hidden)] = hidden
        self._rows[: len(hidden), layout.SCORED] = 1
        return self._scores(self._head, len(hidden), len(hidden))

    def _scores(self, model: int, rows: int, scored: int) -> Tensor:
        found = self._hidden.new_empty(scored, self._config.vocab_size)
        self._call[layout.MODEL], self._call[layout.ROWS], self._call[layout.LOGITS] = model, rows, found.data_ptr()
        self._run(self._call.data_ptr(), self._threads)
        return found

    def _have_parts(self, tiles: int) -> None:
        """Have memory for so many parts of attention, of every head."""
        size = tiles * self._config.num_heads * layout.part_bytes(self._config.head_dim) // 4 + _LINE
        if size > len(self._parts):
            self._parts = self._hidden.new_empty(2 * size)
            self._call[layout.PARTS] = -(-self._parts.data_ptr() // layout.BYTES) * layout.BYTES

    def _reach(self, end: int) -> None:
        """Have cosines and sines for so many positions."""
        if end > len(self._cosines):
            tables = rope_tables(torch.arange(2 * end), self._config, torch.float32)
            self._cosines, self._sines = (table[:, 0].contiguous() for table in tables)

    def _linear(self, layer: Any) -> list[int]:
        eight = isinstance(layer, Plain8Linear)
        weight, scales = (layer.levels, self._address(layer.scales)) if eight else (layer.weight, 0)
        bias = 0 if layer.bias is None else self._address(layer.bias)
        kind = _KINDS[type(layer)]
        if kind == INT8 and build.has(build.VNNI) and weight.shape[1] % layout.BYTES == 0:
            kind = INT8_BYTES
        return [kind, *weight.shape, self._address(weight), scales, bias]

    def _table(self, words: list[int]) -> int:
        return self._address(torch.tensor(words))

    def _address(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _sizes(config: DecoderConfig, threads: int) -> tuple[int, int]:
    """Numbers of 4 bytes that all threads share, and that each has, in whole lines: as `kernels.step` lays them out."""
    heads = config.num_heads * config.head_dim
    qkv = heads + 2 * config.num_kv_heads * config.head_dim
    shared = MOST_ROWS * (
        config.hidden_size + qkv + 2 * config.intermediate_size + max(heads, config.intermediate_size)
    )
    widest = max(config.hidden_size, heads, config.intermediate_size)
    memory = (layout.scratch(widest) + layout.BYTES + layout.tile_bytes(config.head_dim)) // 4
    private = MOST_ROWS * (config.hidden_size + widest + 1) + memory
    return -(-shared // _LINE) * _LINE, -(-private // _LINE) * _LINE
