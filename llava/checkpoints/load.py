"""Load a checkpoint of any layout. Which one it is, its content tells, never its name."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from llava.checkpoints import hf, native, original
from llava.checkpoints.adapters import adapted
from llava.checkpoints.gguf import open_gguf
from llava.checkpoints.hf_config import read_json
from llava.checkpoints.native import CONFIG, Loaded, build_processor
from llava.checkpoints.quantized import expect_levels
from llava.checkpoints.stream import load_streamed, stream_tensors, weight_files
from llava.checkpoints.tokenizer_files import read_tokenizer
from llava.config import LlavaConfig, Precision, Storage, load_config
from llava.errors import LlavaError
from llava.fetch import Progress, quiet, resolve
from llava.models.llava import LlavaModel
from llava.models.meta import on_meta
from llava.models.vision import build_vision_encoder
from llava.processor import Processor
from llava.quantization.pack import Packer, Target, packing
from llava.registry import model_folder
from llava.tokenizer import Tokenizer

Rename = Callable[[str], str | None]


def load_checkpoint(
    folder: Path, progress: Progress = quiet, template: str | None = None, target: Target | None = None
) -> Loaded:
    """A model and its processor from a folder of the native, hf or original layout. Raises LlavaError.

    template: a name, where the checkpoint does not say which it was trained with, or to overrule it.
    target: how weights are stored for inference, and where; None leaves the plain float32 model on the CPU.
    """
    values = read_json(folder / CONFIG)
    if "layout" in values:
        loaded = _load_native(folder, progress, target)
        return Loaded(loaded.model, loaded.processor.with_template(template)) if template else loaded
    if original.is_original(values):
        return _load_original(folder, template, target)
    if values.get("model_type") in hf.MODEL_TYPES:
        config, tensors = hf.read_config(folder, template), stream_tensors(weight_files(folder))
        model = _stream(config, folder, tensors, hf.rename, target)
        return _loaded(model, folder, prefer_sentencepiece=False)
    raise LlavaError(
        f"{folder / CONFIG}: not a LLaVA model; expected the key 'layout' (native), 'mm_vision_tower' (original), or "
        f"model_type {', '.join(hf.MODEL_TYPES)} (hf), found model_type {values.get('model_type')!r}"
    )


def _load_native(folder: Path, progress: Progress, target: Target | None) -> Loaded:
    config = load_config(folder / CONFIG)
    if config.base is not None:
        return native.load_native(folder, progress, target)
    adapter = None
    if config.storage is not None:
        if target is None:
            raise LlavaError(f"{folder}: is stored in {config.storage.precision}: it can be run, but not changed")
        if target[0] != config.storage or target[1].type != "cpu":
            raise LlavaError(f"{folder}: is stored in {config.storage.precision}, and runs so on a CPU only")
        adapter = folder / native.ADAPTER if (folder / native.ADAPTER).exists() else None
    tensors = stream_tensors(weight_files(folder))
    model = _stream(config, folder, tensors, str, target, adapter=adapter, adapter_names=lambda name: f"llm.{name}")
    return _loaded(model, folder, prefer_sentencepiece=not (folder / "tokenizer.json").exists())


def load_original_base(folder: Path, target: Target | None) -> LlavaModel:
    """The base of a LoRA folder of the original layout, with the folder's projector but without its LoRA."""
    return _load_original(folder, "plain", target, with_adapter=False).model


def _load_original(folder: Path, template: str | None, target: Target | None, with_adapter: bool = True) -> Loaded:
    config = original.read_config(folder, template)
    trained = next((folder / n for n in (original.LORA, original.PROJECTOR) if (folder / n).exists()), None)
    if trained is None:
        whole = stream_tensors(weight_files(folder))
        model = _stream(config, folder, whole, original.rename, target, tower_may_be_outside=True)
        return _loaded(model, folder, prefer_sentencepiece=True)
    base = base_of(folder)

    def rename(stored: str) -> str | None:
        return original.rename_trained(stored) if "mm_projector" in stored else original.rename(stored)

    trained_names = {rename(name) for name, _ in stream_tensors([trained])}
    tensors: Iterator[tuple[str, Tensor]] = (
        pair for pair in stream_tensors(weight_files(base)) if rename(pair[0]) not in trained_names
    )
    tensors = itertools.chain(tensors, stream_tensors([trained]))
    adapter = folder if trained.name == original.LORA and with_adapter else None
    model = _stream(config, folder, tensors, rename, target, tower_may_be_outside=True, adapter=adapter)
    return _loaded(model, _tokenizer_folder(folder), prefer_sentencepiece=True)


def stored_as(folder: Path) -> Storage | None:
    """How the weights of a quantized checkpoint are stored; None for all others. Raises LlavaError."""
    return load_config(folder / CONFIG).storage if "layout" in read_json(folder / CONFIG) else None


def storage_for(folder: Path, precision: Precision | None, beside_8bit: bool) -> Storage:
    """How to store a checkpoint's weights: as asked for, else as it stores them itself, else in 16 bits."""
    own = stored_as(folder) if precision is None and not beside_8bit else None
    return own or Storage(precision or "float16", beside_8bit)


def open_processor(
    folder: Path, progress: Progress = quiet, template: str | None = None
) -> tuple[LlavaConfig, Processor]:
    """The configuration and the processor of a checkpoint of any layout; its weights stay where they are.

    Raises LlavaError as `load_checkpoint` does.
    """
    values = read_json(folder / CONFIG)
    tokenizer: Tokenizer | None = None
    if "layout" in values:
        config = load_config(folder / CONFIG)
        if config.base is not None:
            tokenizer = open_gguf(resolve(config.base.llm, progress)).tokenizer
        slow = not (folder / "tokenizer.json").exists()
    else:
        slow = original.is_original(values)
        config = original.read_config(folder, template) if slow else hf.read_config(folder, template)
    if tokenizer is None:
        place = folder
        if slow and any((folder / name).exists() for name in (original.LORA, original.PROJECTOR)):
            place = _tokenizer_folder(folder)
        tokenizer = read_tokenizer(place, slow, None if slow else "<image>")
    with on_meta():
        tokens_per_view = build_vision_encoder(config.vision).num_tokens
    processor = build_processor(config, tokenizer, tokens_per_view)
    return config, processor.with_template(template) if template else processor


def _tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a folder is that stands on a base."""
    own = (folder / "tokenizer.model").exists() or (folder / "tokenizer.json").exists()
    return folder if own else base_of(folder)


def base_of(folder: Path) -> Path:
    """The LLM that a projector or LoRA stands on, as its configuration names it."""
    adapter = folder / "adapter_config.json"
    names = [read_json(adapter).get("base_model_name_or_path")] if adapter.exists() else []
    names.append(read_json(folder / CONFIG).get("_name_or_path"))
    for name in names:
        if isinstance(name, str) and name:
            return model_folder(name)
    raise LlavaError(f"{folder}: holds only what was trained, and does not name its base (base_model_name_or_path)")


def _stream(
    config: LlavaConfig,
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    rename: Rename,
    target: Target | None,
    tower_may_be_outside: bool = False,
    adapter: Path | None = None,
    adapter_names: Rename = original.rename,
) -> LlavaModel:
    with on_meta():
        model = LlavaModel(config)
    if config.storage is not None:
        expect_levels(model, config.storage)
    known = model.state_dict().keys()
    tied = config.llm.tie_embeddings

    def wanted(stored: str) -> str | None:
        name = rename(stored)
        if name is None or name in known:
            return name
        unused = (tied and name == "llm.lm_head.weight") or _is_unused_vision(name)
        return None if unused else name

    def may_be_outside(name: str) -> bool:
        return tower_may_be_outside and name.startswith("vision.")

    with packing(model, target) as packer:
        if adapter is not None:
            tensors = adapted(tensors, adapter, packer, adapter_names)
        if absent := load_streamed(model, tensors, wanted, folder, may_be_outside, packer):
            _load_tower(model, folder, absent, packer)
    return model.requires_grad_(False).eval()


def _is_unused_vision(name: str) -> bool:
    """Whether a tensor belongs to a part of the vision tower that comes after the layer that is read out."""
    parts = name.split(".")
    return parts[0] == "vision" and (
        parts[1:3] == ["encoder", "layers"] or parts[1] in ("post_layernorm", "head") or name.endswith("position_ids")
    )


def _load_tower(model: LlavaModel, folder: Path, absent: list[str], packer: Packer | None) -> None:
    """The vision tower where the checkpoint leaves it out: from the repository or folder that it names."""
    held = sum(name.startswith("vision.") for name in model.state_dict())
    if len(absent) != held:
        raise LlavaError(f"{folder}: {len(absent)} of the vision tower's {held} tensors are missing: {absent[0]}, ...")
    tower = tower_folder(folder)

    def rename(stored: str) -> str | None:
        name = stored.removeprefix("vision_model.")
        return name if name in expected else None  # the file may hold the text tower too

    expected = model.vision.state_dict().keys()
    load_streamed(model.vision, stream_tensors(weight_files(tower)), rename, tower, packer=packer, prefix="vision.")


def tower_folder(folder: Path) -> Path:
    """Where the vision tower is that a checkpoint of the original layout leaves out. Raises LlavaError."""
    return model_folder(original.tower_of(folder))


def _loaded(model: LlavaModel, folder: Path, prefer_sentencepiece: bool) -> Loaded:
    tokenizer = read_tokenizer(folder, prefer_sentencepiece, None if prefer_sentencepiece else "<image>")
    return Loaded(model, build_processor(model.config, tokenizer, model.vision.num_tokens))
