"""A LoRA folded into its base and written as one whole model: a folder of the original layout, or what we trained."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from llava.checkpoints import original
from llava.checkpoints.adapters import with_adapter
from llava.checkpoints.convert import open_source, write_native, write_shards
from llava.checkpoints.hf_config import read_json
from llava.checkpoints.load import base_of, load_checkpoint
from llava.checkpoints.native import CONFIG
from llava.checkpoints.stream import stream_tensors, weight_files
from llava.checkpoints.tokenizer_files import FILES
from llava.config import Storage, load_config
from llava.errors import LlavaError
from llava.files import atomic_folder
from llava.models.llava import LlavaModel

_PROBE = 16  # tokens on which both are compared
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 1.0}  # of logits, by how weights are rounded


def merge(folder: Path, target: Path) -> float:
    """Write the merged model; return the largest difference of its logits to base and adapter together.

    Weights keep the base's type. Raises LlavaError when the folder is no LoRA folder, or the logits differ.
    """
    if "layout" in read_json(folder / CONFIG):
        return _merge_native(folder, target)
    if not (folder / original.LORA).exists() or not original.is_original(read_json(folder / CONFIG)):
        raise LlavaError(f"{folder}: not a LoRA folder of the original layout; expected {original.LORA} in it")
    base = base_of(folder)
    types: set[torch.dtype] = set()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        trained = {f"model.{_bare(name)}": tensor for name, tensor in stream_tensors([folder / original.LORA])}
        kinds: dict[str, torch.dtype] = {}
        for name, tensor in with_adapter(_noted(stream_tensors(weight_files(base)), kinds), folder):
            if name not in trained:
                types.add(kinds[name])
                yield name, tensor.to(kinds[name])
        yield from trained.items()

    with atomic_folder(target) as written:
        write_shards(written, tensors(), lambda name: name)
        shutil.copyfile(folder / CONFIG, written / CONFIG)
        for name in FILES:
            source = folder / name if (folder / name).exists() else base / name
            if source.exists():
                shutil.copyfile(source, written / name)
        # Any template will do: no text is rendered here. Stored in 16 bits, for a machine that runs it can merge it.
        stored = Storage("float16"), torch.device("cpu")
        expected = _logits(load_checkpoint(folder, template="plain", target=stored).model)
        merged = _logits(load_checkpoint(written, template="plain", target=stored).model)
        difference = float((merged - expected).abs().max())
        allowed = max(_TOLERANCE.get(kind, 1.0) for kind in types)
        if not difference <= allowed:
            raise LlavaError(f"{folder}: merged, logits differ by {difference:.3g}, more than {allowed}")
    return difference


def _merge_native(folder: Path, target: Path) -> float:
    """The same for a folder of the native layout that stands on base parts: their weights become part of it."""
    if load_config(folder / CONFIG).base is None:
        raise LlavaError(f"{folder}: is a whole model; there is nothing to merge")
    expected = _logits(load_checkpoint(folder).model)
    with atomic_folder(target) as written:
        write_native(open_source(folder), written)
        difference = float((_logits(load_checkpoint(written).model) - expected).abs().max())
        if not difference <= _TOLERANCE[torch.float32]:
            raise LlavaError(f"{folder}: merged, logits differ by {difference:.3g}")
    return difference


def _noted(tensors: Iterable[tuple[str, Tensor]], kinds: dict[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors; what type each has is written down."""
    for name, tensor in tensors:
        kinds[name] = tensor.dtype
        yield name, tensor


def _bare(name: str) -> str:
    return name.removeprefix("base_model.").removeprefix("model.").removeprefix("model.")


@torch.inference_mode()
def _logits(model: LlavaModel) -> Tensor:
    config = model.config.llm
    ids = torch.randint(config.vocab_size, (1, _PROBE), generator=torch.Generator().manual_seed(0))
    return model.llm.logits(model(ids, torch.empty(0, config.hidden_size)))
