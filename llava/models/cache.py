"""The KV cache: keys and values of every layer, a cache for each sequence, slots numbered by position.

A forward pass runs new tokens of several sequences side by side, one after the other in one row of the batch, without
padding. Only attention looks at sequences one by one; so no sequence's length costs another anything, and a sequence is
computed as it would be alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.config import DecoderConfig
from llava.decoding.calls import attended
from llava.models.rope import rope_tables


class KVCache:
    """Keys and values of one sequence: a pair (Hkv, slots, Dh) for each layer, of which `length` slots are filled.

    data: all of them, (layers, 2, Hkv, slots, Dh).
    """

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype, slots: int = 0) -> None:
        self.config, self.length = config, 0
        shape = (config.num_layers, 2, config.num_kv_heads, slots, config.head_dim)
        self._set(torch.empty(shape, device=device, dtype=dtype))

    def _set(self, data: Tensor) -> None:
        self.data = data
        self.layers: list[tuple[Tensor, Tensor]] = [(pair[0], pair[1]) for pair in data.unbind(0)]

    @property
    def slots(self) -> int:
        """Slots allocated."""
        return self.data.shape[3]

    def reserve(self, slots: int) -> None:
        """Make room for `slots` positions, keeping what is stored."""
        if slots > self.slots:
            *front, _, width = self.data.shape
            grown = self.data.new_empty((*front, slots, width))
            grown[..., : self.length, :] = self.data[..., : self.length, :]
            self._set(grown)

    def copy_from(self, other: "KVCache", length: int) -> None:
        """Hold the first `length` slots of another sequence, and nothing else. There must be room for them."""
        self.data[..., :length, :] = other.data[..., :length, :]
        self.length = length


class CacheBatch:
    """One forward pass of all layers: `counts[i]` new tokens of the sequence in `caches[i]`, from its length on."""

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int]) -> None:
        self._parts: list[tuple[KVCache, int, int, int]] = []  # cache, first row, rows, first slot
        row = 0
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(cache.length + count)
            self._parts.append((cache, row, count, cache.length))
            row += count
        self._masks: dict[int, Tensor | None] = {}  # by the part's number: made when PyTorch looks at it

    def rope(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, 1, Dh) for all rows."""
        spans = [torch.arange(start, start + count, device=device) for _, _, count, start in self._parts]
        if config.rope_scaling is not None and config.rope_scaling.type == "dynamic":  # depends on a sequence's length
            tables = [rope_tables(span, config, dtype) for span in spans]
            return torch.cat([cos for cos, _ in tables]), torch.cat([sin for _, sin in tables])
        return rope_tables(torch.cat(spans), config, dtype)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (1, Hkv, T, Dh), and let each query of q (1, H, T, Dh) see its sequence up to itself."""
        outputs = []
        for number, (cache, row, count, start) in enumerate(self._parts):
            end = start + count
            keys, values = cache.layers[layer]
            keys[:, start:end] = k[0, :, row : row + count]
            values[:, start:end] = v[0, :, row : row + count]
            window = cache.config.sliding_window
            queries = q[:, :, row : row + count]
            found = attended(queries, keys[None, :, :end], values[None, :, :end], start, window)
            if found is not None:
                outputs.append(found)
                continue
            if number not in self._masks:
                self._masks[number] = self._mask(cache.config, count, start)
            mask = self._masks[number]
            first = max(0, end - window) if window is not None and count == 1 else 0
            outputs.append(
                F.scaled_dot_product_attention(
                    queries,
                    keys[None, :, first:end],
                    values[None, :, first:end],
                    attn_mask=mask,
                    is_causal=mask is None and count > 1,
                    enable_gqa=True,
                )
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def finish(self) -> None:
        """All layers have run: the new tokens count as stored."""
        for cache, _, count, start in self._parts:
            cache.length = start + count

    def _mask(self, config: DecoderConfig, count: int, start: int) -> Tensor | None:
        """Which slots (S,) each query (T,) sees; None where it is all of them, or plainly those up to itself."""
        end, window = start + count, config.sliding_window
        if count == 1 or (start == 0 and (window is None or end <= window)):
            return None
        positions, slots = torch.arange(start, end), torch.arange(end)
        visible = slots <= positions[:, None]
        if window is not None:
            visible &= slots > positions[:, None] - window
        return visible.to(self._parts[0][0].layers[0][0].device)
