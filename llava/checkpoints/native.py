"""The native layout: a folder with what was trained, and a `config.json` that names the base parts it stands on.

config.json             LlavaConfig; with `base`: what was trained, on base parts
projector.safetensors   the projector
vision.safetensors      the vision encoder, where it was trained too
adapter/                a LoRA of the decoder, in PEFT's layout   } one of them, or neither where the
llm.safetensors         the whole decoder                         } decoder was left as it is

Without `base` the folder holds everything: shards of LlavaModel's tensors under its own names, and the tokenizer's
files (llava.checkpoints.load reads it).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llava.checkpoints.adapters import adapted, with_adapter
from llava.checkpoints.files import load_strict, read_safetensors, write_safetensors
from llava.checkpoints.gguf import open_gguf
from llava.checkpoints.stream import load_streamed, stream_tensors
from llava.config import BaseParts, LlavaConfig, load_config
from llava.errors import LlavaError
from llava.fetch import Progress, quiet, resolve
from llava.files import write_text
from llava.models.llava import LlavaModel
from llava.models.meta import on_meta
from llava.models.projectors import build_projector
from llava.models.vision import build_vision_encoder
from llava.processor import Processor
from llava.quantization.pack import Target, packing
from llava.tokenizer import FastTokenizer, Tokenizer

CONFIG, PROJECTOR, VISION = "config.json", "projector.safetensors", "vision.safetensors"
LLM, ADAPTER = "llm.safetensors", "adapter"


@dataclass(frozen=True)
class Loaded:
    """A model on the CPU in float32, and its processor."""

    model: LlavaModel
    processor: Processor


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_native(
    folder: Path, progress: Progress = quiet, target: Target | None = None, with_adapter: bool = True
) -> Loaded:
    """Load a folder of the native layout, fetching the base parts where they are missing. Raises LlavaError.

    target: how weights are stored for inference, and where; None leaves the plain model, as training needs it.
    with_adapter: fold its LoRA in, if it has one.
    """
    config = load_config(folder / CONFIG)
    loaded = load_base(config, progress, folder if with_adapter else None, target)
    model = loaded.model
    load_visual_parts(model, folder)
    with packing(model, target) as packer:
        for name in list(model.state_dict()) if packer else ():
            if packer and not name.startswith("llm."):
                packer.arrived(name)
    return loaded


def load_visual_parts(model: LlavaModel, folder: Path) -> None:
    """Load what was trained between pixels and LLM: the projector, and the encoder if it was. Raises LlavaError."""
    if (folder / VISION).exists():
        load_strict(model.vision, model.vision.state_dict() | read_safetensors(folder / VISION), folder / VISION)
    load_strict(model.projector, read_safetensors(folder / PROJECTOR), folder / PROJECTOR)


def load_base(
    config: LlavaConfig,
    progress: Progress = quiet,
    trained: Path | None = None,
    target: Target | None = None,
    with_llm: bool = True,
) -> Loaded:
    """The pre-trained parts that `config` names, with a freshly initialised projector. Raises LlavaError.

    trained: a folder whose decoder, or adapter of it, takes the place of the base's.
    """
    if config.base is None:
        raise LlavaError("this model stands on no base parts, as training needs them")
    with on_meta():
        model = LlavaModel(config)
    vision = resolve(config.base.vision, progress)
    load_strict(model.vision, model.vision.state_dict_from(vision), vision)
    base = open_gguf(resolve(config.base.llm, progress))
    if base.config != config.llm:
        raise LlavaError(f"{base.path}: its configuration is not the one in config.json: {base.config!r}")
    if with_llm:
        tensors, source = base.tensors(), base.path
        if trained is not None and (trained / LLM).exists():
            tensors, source = stream_tensors([trained / LLM]), trained / LLM
        with packing(model, target) as packer:
            if trained is not None and (trained / ADAPTER).exists():
                tensors = adapted(tensors, trained / ADAPTER, packer, lambda name: f"llm.{name}")
            load_streamed(model.llm, tensors, str, source, packer=packer, prefix="llm.")
    model.projector = build_projector(config.projector, model.vision.feature_size, config.llm.hidden_size)
    processor = build_processor(config, base.tokenizer, model.vision.num_tokens)
    return Loaded(model.requires_grad_(False).eval(), processor)


def whole_tensors(folder: Path, config: LlavaConfig, base: BaseParts, fold: bool) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder that stands on base parts, under LlavaModel's names; with `fold`, its LoRA folded in."""
    tensors: Iterable[tuple[str, Tensor]] = open_gguf(resolve(base.llm)).tensors()
    if (folder / LLM).exists():
        tensors = stream_tensors([folder / LLM])
    if fold and (folder / ADAPTER).exists():
        tensors = with_adapter(tensors, folder / ADAPTER)
    for name, tensor in tensors:
        yield f"llm.{name}", tensor
    with on_meta():
        vision = build_vision_encoder(config.vision)
    trained = read_safetensors(folder / VISION) if (folder / VISION).exists() else {}
    for name, tensor in (vision.state_dict_from(resolve(base.vision)) | trained).items():
        yield f"vision.{name}", tensor
    for name, tensor in read_safetensors(folder / PROJECTOR).items():
        yield f"projector.{name}", tensor


def write_tokenizer(base: BaseParts, folder: Path) -> None:
    """The tokenizer of base parts, as the files that whole models have."""
    tokenizer = open_gguf(resolve(base.llm)).tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    eos = tokenizer.decode([tokenizer.eos_id], keep_special=True)
    write_text(folder / "tokenizer_config.json", json.dumps({"eos_token": eos}) + "\n")


def build_processor(config: LlavaConfig, tokenizer: Tokenizer, tokens_per_view: int) -> Processor:
    """The processor of a model with this config."""
    return Processor(
        tokenizer,
        config.image,
        config.video,
        tokens_per_view,
        config.template,
        config.system,
        config.images_first,
        config.around_image,
        config.chat_template,
    )


def save_native(folder: Path, config: LlavaConfig, projector: Mapping[str, Tensor]) -> None:
    """Write `config.json` and the projector into an existing folder."""
    write_safetensors(folder / PROJECTOR, projector)
    write_text(folder / CONFIG, config.model_dump_json(indent=2, exclude_none=True) + "\n")
