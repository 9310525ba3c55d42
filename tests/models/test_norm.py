"""RMSNorm in training gives what PyTorch's gives, values and gradients."""

import pytest
import torch
from torch import nn

from llava.models.norm import RMSNorm


@pytest.mark.parametrize("shape", [(2, 7, 48), (5, 48)])
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(48, eps=1e-5), nn.RMSNorm(48, eps=1e-5)
    weight = torch.randn(48)
    x, upstream = 3 * torch.randn(shape), torch.randn(shape)
    found = []
    for norm in (ours, theirs):
        norm.weight.data = weight.clone()
        given = x.clone().requires_grad_()
        out = norm(given)
        out.backward(upstream)
        found.append((out.detach(), given.grad, norm.weight.grad))
    assert "_Normalized" in type(ours(x.clone().requires_grad_()).grad_fn).__name__  # not PyTorch's own way
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_under_autocast_it_gives_what_matrices_are_multiplied_in() -> None:
    norm, x = RMSNorm(16, eps=1e-5), torch.randn(3, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16 and norm(x).dtype == torch.float32
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), norm(x), atol=0.02, rtol=0.01)  # bfloat16 has eight bits
