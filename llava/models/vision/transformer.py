"""The transformer that CLIP's and SigLIP's vision encoders share. Parameter names are Hugging Face's."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import ClipVisionConfig, SiglipVisionConfig
from llava.errors import LlavaError

VitConfig = ClipVisionConfig | SiglipVisionConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid_(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class VitAttention(nn.Module):
    """Attention of all tokens to all, with biases."""

    def __init__(self, config: VitConfig) -> None:
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


class VitMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class VitBlock(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = VitAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VitMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VitLayers(nn.Module):
    """The layers up to the one whose output is read, (N, T, D) to (N, T, D); those after it are not built."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        layer = config.feature_layer
        depth = config.num_layers + 1 + layer if layer < 0 else layer
        if not 0 <= depth <= config.num_layers:
            raise LlavaError(f"feature_layer {layer} is outside the {config.num_layers} layers of the vision encoder")
        self.layers = nn.ModuleList(VitBlock(config) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def published_weights(encoder: nn.Module, path: Path) -> dict[str, Tensor]:
    """The encoder's parameters from a safetensors file of the whole CLIP or SigLIP model; unused layers are skipped."""
    from llava.checkpoints.files import read_safetensors

    wanted = encoder.state_dict().keys()
    found = {key.removeprefix("vision_model."): value for key, value in read_safetensors(path).items()}
    return {key: value for key, value in found.items() if key in wanted}
