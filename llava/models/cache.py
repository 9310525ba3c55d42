"""The KV cache: keys and values of every layer, in slots numbered by position.

A token's slot *is* its position. So padding on the right of a row needs no mask of its own: it lies after every real
token, nobody attends to it, and the next real token overwrites it.
"""

import torch
from torch import Tensor

from llava.config import DecoderConfig
from llava.errors import LlavaError

_BLOCK = 256  # slots are added in blocks of this size


class KVCache:
    """Keys and values (B, Hkv, S, Dh) per layer. Grows as needed, up to the model's longest context."""

    def __init__(self, config: DecoderConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self._config = config
        shape = (config.num_layers, 2, batch, config.num_kv_heads, 0, config.head_dim)
        self._data = torch.empty(shape, device=device, dtype=dtype)
        self._positions = torch.empty(0, dtype=torch.long, device=device)
        self._start = self._end = 0
        self.mask: Tensor | None = None  # set by `begin`; None means: plain causal, or one row that sees every slot

    @property
    def slots(self) -> int:
        """Slots allocated a row."""
        return self._data.shape[4]

    def reserve(self, slots: int) -> None:
        """Make room for `slots` positions a row, keeping what is stored.

        Raises LlavaError past the model's longest context.
        """
        if slots > self._config.max_positions:
            raise LlavaError(
                f"the conversation needs {slots} tokens, the model's context holds {self._config.max_positions}; "
                "start a new conversation or use fewer images"
            )
        if slots > self.slots:
            rounded = min(-(-slots // _BLOCK) * _BLOCK, self._config.max_positions)
            *front, _, width = self._data.shape
            grown = self._data.new_zeros((*front, rounded, width))  # zeros: a masked slot must never hold a NaN
            grown[..., : self.slots, :] = self._data
            self._data = grown

    def begin(self, positions: Tensor) -> None:
        """Prepare one forward pass of all layers over `positions`: (T,) shared by the rows, or (B, T)."""
        self._start, self._end = int(positions.min()), int(positions.max()) + 1
        self.reserve(self._end)
        self._positions = positions
        tokens = positions.shape[-1]
        shared = positions.dim() == 1
        window = self._config.sliding_window
        beyond = window is not None and self._end > window
        if shared and (self._start == 0 or tokens == 1) and not beyond:
            self.mask = None
        else:
            slots = torch.arange(self._end, device=positions.device)
            visible = slots <= positions[..., None]  # (T, S) or (B, T, S)
            if window is not None:
                visible &= slots > positions[..., None] - window
            self.mask = visible[None, None] if shared else visible[:, None]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, Hkv, T, Dh) at the current positions; return all slots in use (B, Hkv, S, Dh)."""
        keys, values = self._data[layer]
        if self._positions.dim() == 1:
            keys[:, :, self._start : self._end] = k
            values[:, :, self._start : self._end] = v
        else:
            rows = torch.arange(k.shape[0], device=k.device)[:, None]
            keys[rows, :, self._positions] = k.transpose(1, 2)
            values[rows, :, self._positions] = v.transpose(1, 2)
        return keys[:, :, : self._end], values[:, :, : self._end]

    def expand(self, batch: int, slots: int) -> "KVCache":
        """A new cache of `batch` rows, each with a copy of the first `slots` slots of this cache's only row."""
        copy = KVCache(self._config, batch, self._data.device, self._data.dtype)
        copy.reserve(slots)
        copy._data[..., :slots, :] = self._data[..., :slots, :]
        return copy
