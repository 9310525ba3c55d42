"""Weights of a folder of shards, one tensor at a time, into a model on `meta`.

Peak memory is the model and, at most, one shard: safetensors are read tensor by tensor, `.bin` files shard by shard.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor, nn

from llava.checkpoints.files import read_torch
from llava.checkpoints.hf_config import read_json
from llava.errors import LlavaError
from llava.quantization.pack import Packer

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_MAPPED = 128 * 2**20  # bytes of a file that are mapped at once
_LISTED = 8  # names that an error shows


def weight_files(folder: Path) -> list[Path]:
    """The shards of a folder: those its index names, or its only weight file. Raises LlavaError."""
    for name in _INDICES:
        if (folder / name).exists():
            index = read_json(folder / name).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise LlavaError(f"{folder / name}: expected a 'weight_map' of names to files")
            files = [folder / Path(str(file)).name for file in dict.fromkeys(index.values())]
            if missing := [file.name for file in files if not file.exists()]:
                raise LlavaError(f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing)}")
            return files
    for name in _SINGLE:
        if (folder / name).exists():
            return [folder / name]
    raise LlavaError(f"{folder}: holds no weights; expected one of {', '.join((*_INDICES, *_SINGLE))}")


def stream_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, as they are stored. Raises LlavaError for a damaged file."""
    for file in files:
        if file.suffix == ".safetensors":
            yield from _stream_safetensors(file)
        else:
            tensors = read_torch(file)
            for name in list(tensors):
                yield name, tensors.pop(name)


def _stream_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            names = deque(opened.keys())
        while names:  # opened anew now and then, so that the pages that were mapped do not add up
            mapped = 0
            with safetensors.safe_open(file, framework="pt") as opened:
                while names and mapped < _MAPPED:
                    name = names.popleft()
                    tensor = opened.get_tensor(name)
                    mapped += tensor.nbytes
                    yield name, tensor
                    del tensor
    except FileNotFoundError:
        raise LlavaError(f"{file}: weight file not found") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise LlavaError(f"{file}: damaged or truncated safetensors file ({error}); fetch it again") from None


def load_streamed(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    rename: Callable[[str], str | None],
    source: Path,
    optional: Callable[[str], bool] = lambda name: False,
    packer: Packer | None = None,
    prefix: str = "",
) -> list[str]:
    """Give `model`, on `meta`, these tensors in float32.

    rename: a stored name to the model's, or None for a tensor that is not needed.
    optional: names of the model that may be absent; those that were are returned.
    packer: packs what has arrived; its names are those of `model` behind `prefix`.
    Raises LlavaError that lists missing, unexpected and misshaped names.
    """
    expected = model.state_dict()
    found: set[str] = set()
    unexpected: list[str] = []
    shapes: list[str] = []
    for stored, tensor in tensors:
        name = rename(stored)
        if name is None:
            continue
        if name not in expected or name in found:
            unexpected.append(stored if name not in found else f"{stored} (twice)")
            continue
        found.add(name)
        if tensor.shape != expected[name].shape:
            shapes.append(f"{stored} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
        else:
            floats = tensor.is_floating_point() and not (packer and packer.takes(prefix + name))
            _assign(model, name, tensor.float() if floats else tensor)
            if packer:
                packer.arrived(prefix + name)
    absent = sorted(expected.keys() - found)
    missing = [name for name in absent if not optional(name)]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    told = "; ".join(f"{len(names)} {what}: {', '.join(names[:_LISTED])}" for what, names in problems if names)
    if told:
        raise LlavaError(f"{source}: the weights do not fit the model that its configuration describes: {told}")
    return absent


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in dict(module.named_parameters(recurse=False)):
        setattr(module, leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))
    else:
        setattr(module, leaf, tensor.contiguous())
