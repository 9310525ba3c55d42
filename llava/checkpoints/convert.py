"""From one layout to another, tensor by tensor: nothing is computed, so a way there and back gives the same bits.

Tensors of the vision tower that LLaVA never uses (its last layer) are carried along.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llava.chat.jinja import jinja_of
from llava.chat.templates import JINJA, get_template
from llava.checkpoints import hf, native, original
from llava.checkpoints.fast_tokenizer import fast_from_sentencepiece
from llava.checkpoints.files import write_safetensors
from llava.checkpoints.hf_config import read_json
from llava.checkpoints.load import Rename, tower_folder
from llava.checkpoints.native import CONFIG
from llava.checkpoints.quantized import quantized_tensors
from llava.checkpoints.stream import stream_tensors, weight_files
from llava.checkpoints.tokenizer_files import FILES, read_tokenizer
from llava.checkpoints.write import (
    hf_name,
    hf_preprocessor,
    hf_values,
    original_name,
    original_values,
    transformer_of,
    vision_values,
)
from llava.config import BaseParts, LlavaConfig, Storage, load_config
from llava.errors import LlavaError
from llava.files import atomic_folder, write_text

Layout = Literal["hf", "original", "native"]
SHARD = 5_000_000_000  # bytes
_IMAGE, _PAD, _VIDEO = "<image>", "<pad>", "<video>"
_VOCABULARY = ("llm.embed_tokens.weight", "llm.lm_head.weight")
_MULTIPLE = 64  # to which hf checkpoints of LLaVA pad the vocabulary


@dataclass(frozen=True)
class Source:
    """A checkpoint to be converted: its model, its tensors under LlavaModel's names, and what else it tells."""

    folder: Path
    layout: Layout
    config: LlavaConfig
    vocabulary: int | None  # rows of the vocabulary that were there before image tokens were added, where known
    base: BaseParts | None = None  # what a folder that holds only what was trained stands on

    def tensors(self, fold: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, as stored; the tower's from its own folder where the checkpoint leaves it out.

        fold: into the LLM of a folder that stands on base parts, the LoRA that it has.
        """
        if self.base is not None:
            yield from native.whole_tensors(self.folder, self.config, self.base, fold)
            return
        names: dict[Layout, Rename] = {"hf": hf.rename, "original": original.rename, "native": str}
        has_tower = False
        for stored, tensor in stream_tensors(weight_files(self.folder)):
            if name := names[self.layout](stored):
                has_tower |= name.startswith("vision.")
                yield name, tensor
        if not has_tower:
            for stored, tensor in stream_tensors(weight_files(tower_folder(self.folder))):
                name = stored.removeprefix("vision_model.")
                if not stored.startswith(("text_model.", "logit_")) and "projection" not in stored.partition(".")[0]:
                    yield f"vision.{name}", tensor


def open_source(folder: Path, template: str | None = None) -> Source:
    """A whole checkpoint of any layout. Raises LlavaError."""
    values = read_json(folder / CONFIG)
    if "layout" in values:
        config = load_config(folder / CONFIG)
        if config.storage is not None:
            raise LlavaError(f"{folder}: is stored in {config.storage.precision}; convert what it was made from")
        return Source(folder, "native", config.model_copy(update={"base": None}), None, config.base)
    if original.is_original(values):
        if any((folder / name).exists() for name in (original.LORA, original.PROJECTOR)):
            raise LlavaError(f"{folder}: holds only what was trained on a base; `llava merge` makes it a whole model")
        config = original.read_config(folder, template)
        return Source(folder, "original", config, None)
    return Source(folder, "hf", hf.read_config(folder, template), values.get("llava_vocab_size"))


def convert(source: Source, target: Path, to: Layout, storage: Storage | None = None) -> None:
    """Write the checkpoint in another layout. Raises LlavaError for what that layout cannot say.

    storage: int8 or int4, to write a quantized checkpoint; only the native layout has them.
    """
    if storage is not None and to != "native":
        raise LlavaError(f"8 and 4 bits are stored in the native layout only, not in {to}")
    with atomic_folder(target) as folder:
        if to == "native":
            write_native(source, folder, storage)
        elif to == "original":
            _copy_tokenizer(source, folder)
            _write_original(source, folder, target)
        else:
            _write_hf(source, folder, _copy_tokenizer(source, folder))


def write_native(source: Source, folder: Path, storage: Storage | None = None) -> None:
    """Write a whole model of the native layout, quantized or not, into an empty folder."""
    _copy_tokenizer(source, folder)
    config = source.config.model_copy(update={"storage": storage})
    write_text(folder / CONFIG, config.model_dump_json(indent=2, exclude_none=True) + "\n")
    adapter = source.folder / native.ADAPTER
    beside = storage is not None and storage.precision == "int4" and adapter.exists()
    tensors = source.tensors(fold=not beside)
    if storage is not None:
        tensors = quantized_tensors(tensors, source.config, storage)
    write_shards(folder, tensors, lambda name: name)
    if beside:  # 4 bits would round most of it away
        shutil.copytree(adapter, folder / native.ADAPTER)


def _write_original(source: Source, folder: Path, target: Path) -> None:
    config, rows = source.config, source.vocabulary
    if rows is not None:  # rows that were added for hf's image tokens go again
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"vocab_size": rows})})
    tower = original.tower_name(config.vision)
    if tower is None:  # none of the hub's: its configuration goes along
        tower = str(target.resolve() / "vision_tower")
        (folder / "vision_tower").mkdir()
        encoder = vision_values(transformer_of(config.vision))
        write_text(folder / "vision_tower" / CONFIG, json.dumps(encoder, indent=2) + "\n")
    values = original_values(config, tower)
    write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")
    if config.template != JINJA:
        told = original.template_of(folder, original.FAMILIES[values["architectures"][0]], config.projector)
        if told not in (None, config.template):
            raise LlavaError(f"the original layout cannot say the template '{config.template}': it is read as '{told}'")
        if config.system not in (None, get_template(config.template).system):
            raise LlavaError("the original layout cannot say a system text of the model's own")
    cut = ((name, tensor[:rows] if name in _VOCABULARY else tensor) for name, tensor in source.tensors())
    write_shards(folder, cut, original_name)


def _write_hf(source: Source, folder: Path, tokens: dict[str, int]) -> None:
    config, rows = source.config, source.config.llm.vocab_size
    if not (folder / "tokenizer.json").exists() and (fast := fast_from_sentencepiece(folder / "tokenizer.model")):
        write_text(folder / "tokenizer.json", fast.to_str())
    free = max([rows, *(token + 1 for token in tokens.values())])
    new = [name for name in (_IMAGE, _PAD, *([_VIDEO] if config.video else [])) if name not in tokens]
    added = {} if _IMAGE in tokens else {name: free + index for index, name in enumerate(new)}
    grown = rows
    if added:
        grown = -(-(free + len(added)) // _MULTIPLE) * _MULTIPLE
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"vocab_size": grown})})
        _add_tokens(folder, added)
    ids = {**tokens, **added}
    values = hf_values(config, ids[_IMAGE], ids.get(_VIDEO), source.vocabulary or rows)
    write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")
    write_text(folder / "preprocessor_config.json", json.dumps(hf_preprocessor(config), indent=2) + "\n")
    processor = {
        "processor_class": {"llava": "LlavaProcessor", "llava_next": "LlavaNextProcessor"}.get(
            values["model_type"], "LlavaNextVideoProcessor"
        ),
        "image_token": _IMAGE,
        "patch_size": values["vision_config"]["patch_size"],
        "num_additional_image_tokens": 1 if values["vision_config"]["model_type"] == "clip_vision_model" else 0,
        "vision_feature_select_strategy": values["vision_feature_select_strategy"],
    }
    write_text(folder / "processor_config.json", json.dumps(processor, indent=2) + "\n")
    own = config.chat_template if config.template == JINJA else jinja_of(get_template(config.template), config.system)
    write_text(folder / "chat_template.jinja", own or "")
    more = grown - rows

    def grow(name: str, tensor: Tensor) -> Tensor:
        if name not in _VOCABULARY or more == 0:
            return tensor
        # The mean: a new token never scores more than every old one, so greedy answers stay.
        return torch.cat((tensor, tensor.float().mean(0, keepdim=True).to(tensor.dtype).expand(more, -1)))

    write_shards(folder, ((name, grow(name, tensor)) for name, tensor in source.tensors()), hf_name)


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], rename: Callable[[str], str], limit: int | None = None
) -> None:
    """Write safetensors of at most `limit` bytes each (SHARD), and their index. One is in memory at a time."""
    limit = limit or SHARD
    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    size = total = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        write_safetensors(folder / f"shard-{number}", shard)
        shard, size, number = {}, 0, number + 1

    for name, tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if shard and size + length > limit:
            flush()
        shard[rename(name)], places[rename(name)] = tensor, number
        size, total = size + length, total + length
    flush()
    if number == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    names = [f"model-{index + 1:05d}-of-{number:05d}.safetensors" for index in range(number)]
    for index, name in enumerate(names):
        (folder / f"shard-{index}").rename(folder / name)
    index_values = {"metadata": {"total_size": total}, "weight_map": {k: names[i] for k, i in places.items()}}
    write_text(folder / "model.safetensors.index.json", json.dumps(index_values, indent=2) + "\n")


def _copy_tokenizer(source: Source, target: Path) -> dict[str, int]:
    """Copy the tokenizer's files; return the special tokens that were added to it."""
    if source.base is not None:
        native.write_tokenizer(source.base, target)
    for name in FILES:
        if (source.folder / name).exists():
            shutil.copyfile(source.folder / name, target / name)
    read_tokenizer(target, prefer_sentencepiece=False)  # a damaged one is told here
    added: dict[str, int] = {}
    if (target / "tokenizer.json").exists():
        found = read_json(target / "tokenizer.json").get("added_tokens") or []
        added |= {str(token["content"]): int(token["id"]) for token in found}
    if (target / "added_tokens.json").exists():
        added |= {str(name): int(token) for name, token in read_json(target / "added_tokens.json").items()}
    return added


def _add_tokens(folder: Path, tokens: dict[str, int]) -> None:
    """Make special tokens known to the tokenizer's files."""

    def entry(content: str) -> dict[str, Any]:
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        return {"content": content, **dict.fromkeys(flags, False), "special": True}

    path = folder / "tokenizer.json"
    if path.exists():
        values = read_json(path)
        values["added_tokens"] = [
            *(values.get("added_tokens") or []),
            *({"id": token, **entry(name)} for name, token in tokens.items()),
        ]
        write_text(path, json.dumps(values, ensure_ascii=False) + "\n")
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = (
        read_json(path) if path.exists() else {"tokenizer_class": "LlamaTokenizer", **_LLAMA_TOKENS}
    )
    known: dict[str, Any] = dict(settings.get("added_tokens_decoder") or {})
    settings["added_tokens_decoder"] = {**known, **{str(token): entry(name) for name, token in tokens.items()}}
    settings["pad_token"] = settings.get("pad_token") or _PAD
    write_text(path, json.dumps(settings, indent=2) + "\n")


_LLAMA_TOKENS = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
