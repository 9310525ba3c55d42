"""LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), folded into a decoder.

W + alpha / r * B @ A (Hu et al. 2021). Oracle: `peft`'s own merge (tests/checkpoints/test_adapters.py).
"""

import json
from pathlib import Path

import torch
from torch import nn

from llava.checkpoints.files import read_safetensors, read_torch
from llava.errors import LlavaError

_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")


@torch.no_grad()
def merge_adapter(decoder: nn.Module, folder: Path, prefix: str = "") -> None:
    """Fold the adapter in `folder` into the weights of `decoder`, in place.

    prefix: what stands before the decoder's names where the adapter was made for a model around it.
    Raises LlavaError for a damaged adapter, one of a kind not supported, or with tensors that match nothing.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LlavaError(f"{path}: not a LoRA configuration ({type(error).__name__}: {error})") from None
    for key in _UNSUPPORTED:
        if config.get(key):
            raise LlavaError(f"{path}: {key} is not supported, only plain LoRA is")
    binary = folder / "adapter_model.bin"
    tensors = read_torch(binary) if binary.exists() else read_safetensors(folder / "adapter_model.safetensors")
    weights = dict(decoder.named_parameters())
    for name in sorted(name for name in tensors if name.endswith(".lora_A.weight")):
        target = name.removeprefix(_PREFIX).removeprefix(prefix).replace(".lora_A.weight", ".weight")
        a, b = tensors.pop(name), tensors.pop(name.replace(".lora_A.", ".lora_B."), None)
        if b is None or target not in weights or (b.shape[0], a.shape[1]) != tuple(weights[target].shape):
            raise LlavaError(f"{folder}: adapter tensor '{name}' does not fit the model; is it for another base?")
        weights[target].add_(b.float() @ a.float(), alpha=scale)
    if tensors:
        raise LlavaError(f"{folder}: adapter tensors that match nothing: {', '.join(sorted(tensors)[:5])}")
