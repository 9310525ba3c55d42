"""Hugging Face's layout: `llava`, `llava_next` and `llava_next_video` folders, as on the hub or as transformers saves.

Source: transformers' configuration and processing classes of these names; the key names are those of the hub and those
that a model has in memory, with and without `vision_model.`.
"""

import re
from pathlib import Path
from typing import Any

from llava.checkpoints.hf_config import clip_config, decoder_config, read_json, siglip_config
from llava.config import ImageConfig, LlavaConfig, TilingConfig, VideoConfig, VisionConfig, validate
from llava.errors import LlavaError
from llava.media.tiling import parse_pinpoints

MODEL_TYPES = ("llava", "llava_next", "llava_next_video")
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")

# stored name -> the model's; the first that matches
_NAMES = (
    (r"(?:model\.)?language_model\.lm_head\.(.*)|lm_head\.(.*)", "llm.lm_head."),
    (r"(?:model\.)?language_model\.(?:model\.)?(.*)", "llm."),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.*)", "vision."),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.*)", "projector.0."),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.*)", "projector.2."),
    (r"(?:model\.)?(image_newline)", ""),
)


def rename(stored: str) -> str | None:
    """A stored tensor's name in LlavaModel; of another, as it is. None for buffers that are computed."""
    if stored.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, prefix in _NAMES:
        if match := re.fullmatch(pattern, stored):
            return prefix + next(group for group in match.groups() if group is not None)
    return stored


def read_config(folder: Path, template: str | None = None) -> LlavaConfig:
    """The model that a folder's configuration files describe. Raises LlavaError.

    template: a template's name, in place of the checkpoint's own chat template.
    """
    where = folder / "config.json"
    values = read_json(where)
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise LlavaError(f"{where}: model_type {kind!r} is not one of {', '.join(MODEL_TYPES)}")
    for key, allowed in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if values.get(key, allowed) != allowed:
            raise LlavaError(f"{where}: {key} {values[key]!r} is not supported, only {allowed!r} is")
    text = {"tie_word_embeddings": values.get("tie_word_embeddings", False), **_part(values, "text_config", where)}
    vision = _vision(values, where)
    own = chat_template(folder) if template is None else None
    if template is None and own is None:
        raise LlavaError(f"{folder}: holds no chat template ({', '.join(CHAT_TEMPLATES)}); give --template")
    return validate(
        LlavaConfig,
        {
            "llm": decoder_config(text, f"{where}: text_config"),
            "vision": vision,
            "image": _image(folder, values, vision.image_size),
            "video": _video(values) if kind == "llava_next_video" else None,
            "projector": "mlp2x_gelu",
            "template": template or "jinja",
            "chat_template": own,
            "base": None,
        },
        str(where),
    )


def chat_template(folder: Path) -> str | None:
    """The Jinja template that a checkpoint brings, or None."""
    if (folder / CHAT_TEMPLATES[0]).exists():
        return (folder / CHAT_TEMPLATES[0]).read_text(encoding="utf-8", errors="replace")
    for name in CHAT_TEMPLATES[1:]:
        if (folder / name).exists() and isinstance(found := read_json(folder / name).get("chat_template"), str):
            return found
    return None


def _part(values: dict[str, Any], key: str, where: Path) -> dict[str, Any]:
    part = values.get(key)
    if not isinstance(part, dict):
        raise LlavaError(f"{where}: expected an object '{key}', found {type(part).__name__}")
    return part


def _vision(values: dict[str, Any], where: Path) -> VisionConfig:
    vision, layer = _part(values, "vision_config", where), values.get("vision_feature_layer", -2)
    strategy = values.get("vision_feature_select_strategy", "default")
    select = {"default": "patch", "full": "cls_patch"}.get(strategy)
    if not isinstance(layer, int) or select is None:
        raise LlavaError(f"{where}: features of layer {layer!r}, selected by {strategy!r}, are not supported")
    kind = vision.get("model_type")
    if kind == "clip_vision_model":
        return clip_config(vision, layer, select, f"{where}: vision_config")
    if kind == "siglip_vision_model":
        if select == "patch":
            raise LlavaError(f"{where}: SigLIP has no CLS token to drop; expected vision_feature_select_strategy full")
        return siglip_config(vision, layer, f"{where}: vision_config")
    raise LlavaError(f"{where}: vision encoders of type {kind!r} are not supported")


def _image(folder: Path, values: dict[str, Any], size: int) -> ImageConfig:
    """The picture's preprocessing: `preprocessor_config.json`, or `processor_config.json` of transformers 5."""
    found: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        found = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").exists():
        found = read_json(folder / "processor_config.json").get("image_processor") or {}
    fields: dict[str, Any] = {"size": size, "aspect": "crop"}
    if found.get("do_pad") and values["model_type"] == "llava":
        fields["aspect"] = "pad"
    elif not found.get("do_center_crop", not str(found.get("image_processor_type")).startswith("Siglip")):
        fields["aspect"] = "squash"
    if found.get("resample", _BICUBIC) != _BICUBIC:
        raise LlavaError(
            f"{folder}: pictures resized by filter {found['resample']}; only {_BICUBIC} (bicubic) is known"
        )
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in found:
            fields[ours] = found[theirs]
    if values["model_type"] != "llava":
        pinpoints = values.get("image_grid_pinpoints") or found.get("image_grid_pinpoints") or _PINPOINTS
        turned = tuple((width, height) for height, width in parse_pinpoints(pinpoints, size))
        fields["tiling"] = TilingConfig(pinpoints=turned, rounding="hf")
    return validate(ImageConfig, fields, f"{folder}: image preprocessing")


_BICUBIC = 3  # PIL's number
_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # transformers' default


def _video(values: dict[str, Any]) -> VideoConfig:
    fields = {"stride": values.get("spatial_pool_stride", 2), "pool": values.get("spatial_pool_mode", "average")}
    return validate(VideoConfig, fields, "config.json: spatial pooling")
