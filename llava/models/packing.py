"""From the features of a picture's views, or a video's frames, to the tokens that stand for it.

Source: haotian-liu/LLaVA llava/model/llava_arch.py (1.6, `mm_patch_merge_type`), LLaVA-VL/LLaVA-NeXT (`get_2dPool`,
`add_token_per_grid`, `add_token_per_frame`). Oracle: transformers' LlavaNext and LlavaNextVideo (tests/models).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.media.tiling import ImageLayout, TiledLayout, VideoLayout


def pack_image(views: Tensor, layout: ImageLayout, newline: Tensor | None) -> Tensor:
    """Projected features (views, T, D) to tokens (layout.num_tokens, D). newline: (D,)."""
    if not isinstance(layout, TiledLayout):
        return views.flatten(0, 1)
    columns, rows, side = layout.columns, layout.rows, layout.side
    tiles = views[1:].reshape(rows, columns, side, side, -1)  # (rows, columns, side, side, D)
    plane = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows * side, columns * side, D)
    top, bottom, left, right = layout.crop
    plane = plane[top:bottom, left:right]
    if layout.scaled:
        plane = F.interpolate(plane.permute(2, 0, 1)[None], layout.scaled, mode="bilinear")[0].permute(1, 2, 0)
    if layout.newline:
        plane = append_newline(plane, newline)
    return torch.cat((views[0], plane.flatten(0, 1)))


def append_newline(rows: Tensor, newline: Tensor | None) -> Tensor:
    """(..., n, D) to (..., n + 1, D): the newline token after each row. Raises ValueError without one."""
    if newline is None:
        raise ValueError("the layout asks for newline tokens, the model has none")
    return torch.cat((rows, newline.to(rows.dtype).expand(*rows.shape[:-2], 1, -1)), dim=-2)


def pool_frames(frames: Tensor, layout: VideoLayout) -> Tensor:
    """Features (frames, side**2, D) to fewer (frames, pooled_side**2, D)."""
    config = layout.config
    plane = frames.reshape(len(frames), layout.side, layout.side, -1).permute(0, 3, 1, 2)  # (frames, D, side, side)
    if config.pool == "average":
        plane = F.avg_pool2d(plane, config.stride)
    elif config.pool == "max":
        plane = F.max_pool2d(plane, config.stride)
    else:
        plane = F.interpolate(plane, (layout.pooled_side, layout.pooled_side), mode="bilinear")
    return plane.flatten(2).transpose(1, 2)


def pack_video(frames: Tensor, layout: VideoLayout, newline: Tensor | None) -> Tensor:
    """Pooled and projected features (frames, T, D) to tokens (layout.num_tokens, D). newline: (D,)."""
    if layout.config.newline == "row":
        rows = frames.reshape(len(frames), layout.pooled_side, layout.pooled_side, -1)
        return append_newline(rows, newline).flatten(0, 2)
    if layout.config.newline == "frame":
        return append_newline(frames, newline).flatten(0, 1)
    tokens = frames.flatten(0, 1)
    return append_newline(tokens, newline) if layout.config.newline == "one_token" else tokens
