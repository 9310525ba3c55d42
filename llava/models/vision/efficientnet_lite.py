"""EfficientNet-Lite0 (Tan & Le 2019; Lite: no squeeze-and-excitation, ReLU6, stem and head unscaled).

Read out at the linear bottlenecks that end chosen stages: they are dense, where features after ReLU6 are mostly zero.
Beside them, on request, what the network's own classifier (ImageNet) takes the picture for, and where the cell is.
Convolutions pad as TensorFlow does (more on the right and bottom).
Oracle: the package `efficientnet_lite_pytorch`, whose parameter names the weight file has.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.config import EfficientNetLiteConfig
from llava.errors import LlavaError

# stage: (blocks, kernel, stride of the first block, expansion, channels)
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, CLASSES = 32, 1280, 1000
_DEVIATION = 3.0  # of normalized channels: their means over a picture vary by about 1
_CLASS_SCALE = 8.0  # of the square roots of probabilities: one sure class weighs as much as some channels together


class _Conv(nn.Module):
    """Convolution with TensorFlow's `SAME` padding, then batch norm with stored statistics."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in (x.shape[2], x.shape[3])]
        even = pads[0] % 2 == pads[1] % 2 == 0
        if not even:
            x = F.pad(x, [side for pad in reversed(pads) for side in (pad // 2, pad - pad // 2)])
        # Always the stored statistics, whatever mode the model around is in: the norm is a factor and a shift of each
        # channel, taken into the convolution. Passes over the pictures cost more than this one over the weights.
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)  # type: ignore[arg-type,operator]
        shift = self.norm.bias - self.norm.running_mean * scale  # type: ignore[operator]
        weight = self.conv.weight * scale[:, None, None, None]
        padding = (pads[0] // 2, pads[1] // 2) if even else (0, 0)
        return F.conv2d(x, weight, shift, self.conv.stride, padding, self.conv.dilation, self.conv.groups)


class _Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): expand, depthwise, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Conv(inputs, wide) if expansion > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.project = _Conv(wide, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Pixels (N, 3, size, size) to features (N, T, D), T the sum of the squares of the grids.

    D: the stages' channels, then x and y of the cell (`places`), then the classes (`classes`), which all cells share.
    """

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.grids = (config.grid,) if isinstance(config.grid, int) else config.grid
        self.num_tokens = sum(grid**2 for grid in self.grids)
        self.feature_size = sum(_STAGES[stage - 1][4] for stage in config.stages)
        self.feature_size += CLASSES * config.classes + 2 * config.places
        self.stem = _Conv(3, _STEM, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        inputs = _STEM
        for blocks, kernel, stride, expansion, channels in _STAGES[
            : len(_STAGES) if config.classes else max(config.stages)
        ]:
            self.stages.append(
                nn.Sequential(
                    *(
                        _Block(inputs if i == 0 else channels, channels, kernel, stride if i == 0 else 1, expansion)
                        for i in range(blocks)
                    )
                )
            )
            inputs = channels
        self.head = _Conv(inputs, _HEAD) if config.classes else None
        self.classifier = nn.Linear(_HEAD, CLASSES) if config.classes else None

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.stage_maps(pixels)
        chosen = [self._normalized(maps[stage - 1], stage) for stage in self.config.stages]
        classes = class_features(self.class_logits(maps[-1])) if self.config.classes else None
        return torch.cat([self._cells(chosen, classes, grid) for grid in self.grids], dim=1)

    def _cells(self, maps: list[Tensor], classes: Tensor | None, grid: int) -> Tensor:
        """Stages' outputs (N, C, H, W) and the picture's classes (N, 1000) as (N, grid * grid, D)."""
        parts = [F.adaptive_avg_pool2d(x, grid) for x in maps]
        N = len(maps[0])
        if self.config.places:
            line = torch.linspace(-1, 1, grid, dtype=maps[0].dtype, device=maps[0].device)
            place = torch.stack(torch.meshgrid(line, line, indexing="xy"))  # (2, grid, grid): x, y
            parts.append(place.expand(N, 2, grid, grid))
        if classes is not None:
            parts.append(classes[:, :, None, None].expand(-1, -1, grid, grid))
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)

    def _normalized(self, x: Tensor, stage: int) -> Tensor:
        """A stage's output (N, C, H, W), its channels of one mean and deviation where the configuration says so.

        It is the sum of what its blocks give, whose last batch norms say with which mean and deviation each.
        """
        if not self.config.normalize:
            return x
        blocks: Any = self.stages[stage - 1]
        norms = [block.project.norm for block in blocks]
        mean = torch.stack([norm.bias for norm in norms]).sum(0)
        deviation = torch.stack([norm.weight for norm in norms]).norm(dim=0)
        normal: Tensor = (x - mean[:, None, None]) * (_DEVIATION / deviation[:, None, None])
        return normal

    def class_logits(self, last: Tensor) -> Tensor:
        """Scores (N, 1000) of ImageNet's classes, from the last stage's output."""
        assert self.head is not None and self.classifier is not None
        logits: Tensor = self.classifier(F.relu6(self.head(last)).mean((2, 3)))
        return logits

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """The output of each stage that is built, as (N, channels, height, width)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        x, maps = F.relu6(self.stem(pixels)), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def state_dict_from(self, path: Path) -> dict[str, Tensor]:
        """Read the published weight file: blocks are numbered through, and batch norms named by their order."""
        from llava.checkpoints.files import read_torch

        published = read_torch(path)
        missing = {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} - published.keys()
        if missing:
            raise LlavaError(f"{path}: no weights of efficientnet_lite_pytorch (without {', '.join(sorted(missing))})")
        tensors: dict[str, Tensor] = {}

        def take(ours: str, conv: str, norm: str) -> None:
            tensors[f"{ours}.conv.weight"] = published[f"{conv}.weight"]
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                tensors[f"{ours}.norm.{name}"] = published[f"{norm}.{name}"]

        take("stem", "_conv_stem", "_bn0")
        names = [f"stages.{s}.{b}" for s, stage in enumerate(_STAGES) for b in range(stage[0])]
        for index, name in enumerate(names[: sum(stage[0] for stage in _STAGES[: len(self.stages)])]):
            source = f"_blocks.{index}"
            if index > 0:  # the first block does not expand
                take(f"{name}.expand", f"{source}._expand_conv", f"{source}._bn0")
            take(f"{name}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
            take(f"{name}.project", f"{source}._project_conv", f"{source}._bn2")
        if self.config.classes:
            take("head", "_conv_head", "_bn1")
            tensors["classifier.weight"], tensors["classifier.bias"] = published["_fc.weight"], published["_fc.bias"]
        return tensors


def class_features(logits: Tensor) -> Tensor:
    """Scores (N, 1000) of classes as the features (N, 1000) that stand for them."""
    return _CLASS_SCALE * logits.float().softmax(-1).sqrt()
