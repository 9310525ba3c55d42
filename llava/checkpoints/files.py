"""Weight files, read without ever unpickling code, and loaded strictly."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llava.errors import LlavaError
from llava.files import atomic_path

# What `torch.load` raises on damaged files, as fuzzing shows.
DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError),
    *(struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises LlavaError when it is missing, damaged or truncated."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise LlavaError(f"{path}: weight file not found") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise LlavaError(f"{path}: damaged or truncated safetensors file ({error}); fetch or train it again") from None
    return tensors


def read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.pth` or `.bin` file, read with `weights_only`. Raises LlavaError when it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about the pickle protocol of a damaged file
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LlavaError(f"{path}: weight file not found") from None
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LlavaError(f"{path}: damaged, or not a plain file of tensors ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise LlavaError(f"{path}: expected a state dict (names to tensors)")
    return found


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(contiguous, temporary, metadata or {"format": "pt"})
        except SafetensorError as error:  # it hides the OSError of a full disk
            raise LlavaError(f"cannot write {path}: {error}") from None


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give `module` (often on `meta`) these tensors as float32.

    Raises LlavaError that lists missing, unexpected and misshaped names.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    found = "; ".join(f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in problems if names)
    if found:
        raise LlavaError(f"{source}: the weights do not fit {type(module).__name__}: {found}")
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    module.load_state_dict(floats, assign=True)
