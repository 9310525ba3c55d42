"""LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), folded into a decoder.

W + alpha / r * B @ A (Hu et al. 2021). Oracle: `peft`'s own merge (tests/checkpoints/test_adapters.py).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from llava.checkpoints.files import read_safetensors, read_torch
from llava.errors import LlavaError
from llava.quantization.pack import Factors, Packer

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")


def read_adapter(folder: Path) -> dict[str, Factors]:
    """The factors of what the adapter in `folder` adds to each module's weight, by the module's name.

    Raises LlavaError for a damaged adapter, or one of a kind not supported.
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
    factors: dict[str, Factors] = {}
    for name in sorted(name for name in tensors if name.endswith(_A)):
        a, b = tensors.pop(name), tensors.pop(name.replace(_A, _B), None)
        if b is None or a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
            raise LlavaError(f"{folder}: adapter tensor '{name}' has no partner that fits; is it damaged?")
        factors[name.removeprefix(_PREFIX).removesuffix(_A)] = (a.float(), b.float() * scale)
    if tensors:
        raise LlavaError(f"{folder}: adapter tensors that match nothing: {', '.join(sorted(tensors)[:5])}")
    return factors


def adapter_parameters(folder: Path) -> int:
    """How many parameters the adapter in `folder` has. Raises LlavaError as `read_adapter` does."""
    return sum(a.numel() + b.numel() for a, b in read_adapter(folder).values())


def with_adapter(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a base, with the adapter in `folder` folded in; weights that it changes are float32.

    Raises LlavaError as `read_adapter` does, and for adapter tensors that match nothing.
    """
    factors = read_adapter(folder)
    for name, tensor in tensors:
        if pair := factors.pop(name.removesuffix(".weight"), None):
            a, b = pair
            if (len(b), a.shape[1]) != tensor.shape:
                raise misfit(folder, name)
            tensor = torch.addmm(tensor.float(), b, a)
        yield name, tensor
    for name in factors:
        raise misfit(folder, name)


def adapted(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, packer: Packer | None, rename: Callable[[str], str | None]
) -> Iterator[tuple[str, Tensor]]:
    """As `with_adapter`; but a packer of 4 bits gets the adapter, to keep it beside what it packs.

    rename: the adapter's names to the model's.
    """
    if packer is None or not packer.keeps_adapters:
        return with_adapter(tensors, folder)
    for name, factors in read_adapter(folder).items():
        if not packer.adapt(rename(name) or "", factors):
            raise misfit(folder, name)
    return iter(tensors)


def misfit(folder: Path, name: str) -> LlavaError:
    """The error for a tensor of an adapter that has no place."""
    return LlavaError(f"{folder}: adapter tensor '{name}' does not fit the model; is it for another base?")
