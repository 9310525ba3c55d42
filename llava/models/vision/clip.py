"""CLIP's vision transformer, read out at a hidden layer. Parameter names are Hugging Face's `CLIPVisionModel`'s.

Layers after the one that is read out are not built: they would be computed in vain.
Oracle: transformers' `CLIPVisionModel` (tests/models/test_vision.py).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import ClipVisionConfig
from llava.errors import LlavaError


class _Attention(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, H, T, Dh)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))
        return out


class _Block(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Embeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(patches + 1, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat((cls, patches), dim=1) + self.position_embedding.weight


class _Encoder(nn.Module):
    def __init__(self, config: ClipVisionConfig, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ClipVisionEncoder(nn.Module):
    """Pixels (N, 3, size, size) to features (N, num_tokens, feature_size). Source: Radford et al. 2021."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        depth = config.num_layers + 1 + config.feature_layer if config.feature_layer < 0 else config.feature_layer
        if not 0 <= depth <= config.num_layers:
            raise LlavaError(f"feature_layer {config.feature_layer} is outside the {config.num_layers} layers of CLIP")
        self.feature_size = config.hidden_size
        self.drop_cls = config.feature_select == "patch"
        self.num_tokens = (config.image_size // config.patch_size) ** 2 + (not self.drop_cls)
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)  # sic: the published tensors' name
        self.encoder = _Encoder(config, depth)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return x[:, 1:] if self.drop_cls else x

    def state_dict_from(self, path: Path) -> dict[str, Tensor]:
        """Read a safetensors file of Hugging Face's `CLIPModel` or `CLIPVisionModel`; unused layers are skipped."""
        from llava.checkpoints.files import read_safetensors

        wanted = self.state_dict().keys()
        found = {key.removeprefix("vision_model."): value for key, value in read_safetensors(path).items()}
        return {key: value for key, value in found.items() if key in wanted}
