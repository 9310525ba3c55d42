"""What a run computes in, where its recipe leaves it to the machine."""

import time

import torch

from llava.models.llava import LlavaModel

_TOKENS, _WIDTH, _TIMES = 512, 1024, 5


def faster_precision(device: torch.device) -> str:
    """`bfloat16` where a product of matrices in it takes less time than in float32, else `float32`."""
    return min(("float32", "bfloat16"), key=lambda name: _seconds(getattr(torch, name), device))


def autocast(model: LlavaModel, precision: str) -> torch.autocast:
    """Where matrices are multiplied in `precision`: float32 or bfloat16."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    x, w = (torch.ones(rows, _WIDTH, dtype=dtype, device=device) for rows in (_TOKENS, _WIDTH))
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        (x @ w).sum().item()  # its value is here only when a GPU has ended, too
        times.append(time.perf_counter() - began)
    return min(times)
