"""RMSNorm that is trained through in few passes over memory, in the type that matrices are multiplied in."""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """As PyTorch's (Zhang & Sennrich 2019), which on a CPU takes some ten passes over x forward and back.

    Under autocast the result is in autocast's type: once, not again by each linear layer that takes it.
    """

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled() and x.requires_grad:
            x = _Normalized.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        else:
            x = super().forward(x)
        kind = x.device.type
        return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        normal: Tensor = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_weight = (gradient * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        inner = gradient * weight
        shared = torch.linalg.vecdot(inner, normal).div_(normal.shape[-1])[..., None]
        return inner.addcmul_(normal, shared, value=-1).mul_(scale), of_weight, None
