"""Rotary positions (Su et al. 2021) and the ways to stretch them past the context of pre-training.

linear: Chen et al. 2023. dynamic: NTK-aware, by the current length. llama3: Llama 3.1. yarn: Peng et al. 2023.
Oracle: transformers' `modeling_rope_utils` (tests/models/test_decoder.py).
"""

import math

import torch
from torch import Tensor

from llava.config import DecoderConfig, RopeScaling
from llava.decoding.calls import turned


def rope_tables(positions: Tensor, config: DecoderConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, Dh) at `positions` (T,): halves as in HF, with the first half of the sines negated."""
    scaling = config.rope_scaling
    theta, dim = config.rope_theta, config.head_dim
    if scaling is not None and scaling.type == "dynamic":
        trained = scaling.original_positions or config.max_positions
        stretch = scaling.factor * max(int(positions.max()) + 1, trained) / trained - (scaling.factor - 1)
        theta *= stretch ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, device=positions.device).float() / dim
    frequencies, amplitude = 1.0 / theta**exponents, 1.0
    if scaling is not None:
        trained = scaling.original_positions or config.max_positions
        if scaling.type == "linear":
            frequencies = frequencies / scaling.factor
        elif scaling.type == "llama3":
            frequencies = _llama3(frequencies, scaling, trained)
        elif scaling.type == "yarn":
            frequencies, amplitude = _yarn(frequencies, scaling, trained, theta), _yarn_amplitude(scaling)
    angles = positions.float()[:, None] * frequencies  # (T, Dh/2)
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return torch.cat((cos, cos), dim=-1)[:, None].to(dtype), torch.cat((-sin, sin), dim=-1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries and keys (B, T, H, Dh) by their positions."""
    if (found := turned(x, cos, sin)) is not None:
        return found
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _llama3(frequencies: Tensor, scaling: RopeScaling, trained: int) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    waves = trained * frequencies / (2 * math.pi)  # that fit into the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((waves - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def _yarn(frequencies: Tensor, scaling: RopeScaling, trained: int, theta: float) -> Tensor:
    dim = 2 * len(frequencies)

    def index_of(rotations: float) -> float:  # of the frequency that turns so often in the trained context
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    steps = torch.arange(dim // 2, device=frequencies.device, dtype=torch.float32)
    keep = 1 - ((steps - low) / ((high - low) or 0.001)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def _yarn_amplitude(scaling: RopeScaling) -> float:
    def grown(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return grown(scaling.mscale) / grown(scaling.mscale_all_dim)
    return grown(1.0)
