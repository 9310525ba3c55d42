"""Trained LoRAs, each with its projector, over one base that is in memory once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from llava.checkpoints import native, original
from llava.checkpoints.adapters import read_adapter
from llava.checkpoints.files import load_strict, read_safetensors
from llava.checkpoints.hf_config import read_json
from llava.checkpoints.load import base_of, load_original_base, open_processor
from llava.checkpoints.native import CONFIG
from llava.checkpoints.stream import stream_tensors
from llava.config import LlavaConfig, load_config
from llava.engine.variants import Variants
from llava.errors import LlavaError
from llava.fetch import Progress, quiet
from llava.files import sha256
from llava.models.llava import LlavaModel
from llava.models.meta import on_meta
from llava.models.projectors import build_projector
from llava.processor import Processor
from llava.quantization.pack import Factors, Target


def base_name(folder: Path) -> str:
    """What a LoRA folder stands on: folders of equal names can share it. Raises LlavaError for any other folder."""
    if "layout" in read_json(folder / CONFIG):
        base = load_config(folder / CONFIG).base
        if (folder / native.LLM).exists():
            raise LlavaError(f"{folder}: its LoRA stands on an LLM of its own; serve it as a model of its own")
        if base is not None and (folder / native.ADAPTER).exists():
            tower = folder / native.VISION
            return f"{base.llm} and {sha256(tower) if tower.exists() else base.vision}"
    elif original.is_original(read_json(folder / CONFIG)) and (folder / original.LORA).exists():
        return str(base_of(folder).resolve())
    raise LlavaError(f"{folder}: not a LoRA of the native or the original layout; serve it as a model of its own")


def load_shared(
    folders: Mapping[str, Path],
    target: Target,
    progress: Progress = quiet,
    templates: Mapping[str, str | None] | None = None,
) -> tuple[LlavaModel, Variants, dict[str, Processor]]:
    """The base of these folders, which all have the same, the variants over it, and their processors by name.

    templates: names of chat templates, where a folder does not say which, or another is wanted.
    """
    names: Sequence[str] = list(folders)
    opened = {name: open_processor(folders[name], progress, (templates or {}).get(name)) for name in names}
    first, config = folders[names[0]], opened[names[0]][0]
    for name, (other, _) in opened.items():
        if base_name(folders[name]) != base_name(first) or _shape(other) != _shape(config):
            raise LlavaError(f"{folders[name]}: stands on another base than {first}")
    if "layout" in read_json(first / CONFIG):
        model = native.load_native(first, progress, target, with_adapter=False).model
    else:
        model = load_original_base(first, target)
    variants = Variants(model)
    for name, folder in folders.items():
        variants.add(name, _projector(model, opened[name][0], folder), _factors(folder))
    return model, variants, {name: processor for name, (_, processor) in opened.items()}


def _shape(config: LlavaConfig) -> tuple[object, ...]:
    """What variants must have in common: the parts, and how pictures are seen."""
    return config.llm, config.vision, config.image, config.projector, config.video


def _factors(folder: Path) -> dict[str, Factors]:
    if "layout" in read_json(folder / CONFIG):
        return read_adapter(folder / native.ADAPTER)
    return {(original.rename(name) or name).removeprefix("llm."): pair for name, pair in read_adapter(folder).items()}


def _projector(model: LlavaModel, config: LlavaConfig, folder: Path) -> nn.Module:
    with on_meta():
        projector = build_projector(config.projector, model.vision.feature_size, config.llm.hidden_size)
    if "layout" in read_json(folder / CONFIG):
        path = folder / native.PROJECTOR
        tensors = read_safetensors(path)
    else:
        path = folder / original.LORA
        named = {original.rename_trained(name): tensor for name, tensor in stream_tensors([path])}
        if beside := [name for name in named if name is None or not name.startswith("projector.")]:
            raise LlavaError(f"{path}: holds more than a projector ({beside[0]}); serve it as a model of its own")
        tensors = {str(name).removeprefix("projector."): tensor.float() for name, tensor in named.items()}
    load_strict(projector, tensors, path)
    return projector.requires_grad_(False).eval()
