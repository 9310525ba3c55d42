"""Features of a frozen vision encoder, kept on disk: computed once, read by page as they are used."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llava.chat.messages import Image
from llava.errors import LlavaError
from llava.files import atomic_path, os_errors
from llava.models.llava import LlavaModel
from llava.processor import Processor
from llava.train.precision import autocast

_VERSION = 1  # of what encoders and preprocessing compute: to be raised where their code changes that
_BATCH = 4  # larger ones outgrow the processor's cache and are slower


@dataclass(frozen=True)
class FeatureCache:
    """Features (N, T, Dv) of all views of the pictures, in a memory-mapped file, and where those of each are."""

    data: np.ndarray
    rows: dict[Path, slice]

    def get(self, paths: Sequence[Path]) -> Tensor:
        """Features (views of these pictures, T, Dv), float32."""
        return torch.from_numpy(np.concatenate([self.data[self.rows[path]] for path in paths] or [self.data[:0]]))


def build_cache(
    model: LlavaModel,
    processor: Processor,
    sizes: Mapping[Path, tuple[int, int]],
    folder: Path,
    precision: str,
    on_image: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Open the cache of these pictures (and their sizes) for this encoder, or compute it.

    precision: what it is computed in; float32 or bfloat16. Raises LlavaError for a bad picture. The file's name covers
    the encoder's weights, the precision, the preprocessing, and each picture's path, size and date.
    """
    settings = f"{_VERSION} {precision} {model.config.vision.model_dump_json()} {processor.image.model_dump_json()}"
    digest = hashlib.sha256(settings.encode())
    for tensor in model.vision.state_dict().values():
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    rows, views = {}, 0
    for path, size in sizes.items():
        count = processor.layout(size).views
        rows[path], views = slice(views, views + count), views + count
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    file = folder / f"features-{digest.hexdigest()[:24]}.npy"
    if not file.exists():
        shape = (views, model.vision.num_tokens, model.vision.feature_size)
        _require_room(folder, 4 * math.prod(shape))
        with atomic_path(file) as temporary:
            data = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                temporary, mode="w+", dtype=np.float32, shape=shape
            )
            if hasattr(os, "posix_fallocate"):  # else a full disk is a crash, where pages are written later
                with temporary.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, temporary.stat().st_size)
            paths = list(sizes)
            for start in range(0, len(paths), _BATCH):
                batch = paths[start : start + _BATCH]
                pixels = processor.views([Image(path) for path in batch])
                with torch.inference_mode(), autocast(model, precision):
                    features = model.vision(pixels.to(model.device)).float().cpu().numpy()
                data[rows[batch[0]].start : rows[batch[-1]].stop] = features
                if on_image:
                    on_image(start + len(batch), len(paths))
            data.flush()
            del data
    return FeatureCache(np.load(file, mmap_mode="r", allow_pickle=False), rows)


def _require_room(folder: Path, size: int) -> None:
    with os_errors(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < size:
        raise LlavaError(
            f"{folder}: features of all pictures take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, "
            "name another folder (cache), or set cache_features to false: then each picture is encoded as it is used"
        )
