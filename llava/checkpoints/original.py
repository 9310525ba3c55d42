"""The original layout: folders as haotian-liu/LLaVA (1.0, 1.5, 1.6) and LLaVA-VL/LLaVA-NeXT write them.

Whole models, stage 1's `mm_projector.bin` and LoRA folders (`non_lora_trainables.bin`), which stand on a base model.
Source: their llava/model/builder.py, llava_arch.py and train.py for the fields and names.
"""

import re
from pathlib import Path
from typing import Any

from llava.checkpoints.hf_config import clip_config, decoder_config, read_json, siglip_config
from llava.config import ImageConfig, LlavaConfig, TilingConfig, VideoConfig, VisionConfig, validate
from llava.errors import LlavaError
from llava.media.tiling import parse_pinpoints
from llava.models.projectors import build_projector

PROJECTOR, LORA = "mm_projector.bin", "non_lora_trainables.bin"

# architecture -> the LLM's family
FAMILIES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
_CLIP_L = {
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
# mm_vision_tower -> the encoder's configuration, as its repository on the hub has it
TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {"model_type": "clip_vision_model", "image_size": 224, **_CLIP_L},
    "openai/clip-vit-large-patch14-336": {"model_type": "clip_vision_model", "image_size": 336, **_CLIP_L},
    "openai/clip-vit-base-patch32": {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32},
    "openai/clip-vit-base-patch16": {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 16},
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "image_size": 384,
        "patch_size": 14,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    },
}
_SIGLIP_PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# stored name -> the model's; the first that matches
_NAMES = (
    (r"model\.mm_projector\.(.*)", "projector."),
    (r"model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.*)", "vision."),
    (r"model\.(image_newline)", ""),
    (r"(lm_head\..*)", "llm."),
    (r"model\.(.*)", "llm."),
)


def rename(stored: str) -> str | None:
    """A stored tensor's name in LlavaModel; of another, as it is. None for buffers that are computed."""
    if stored.endswith((".inv_freq", ".position_ids")):
        return None
    for pattern, prefix in _NAMES:
        if match := re.fullmatch(pattern, stored):
            return prefix + match[1]
    return stored


def rename_trained(stored: str) -> str | None:
    """As `rename`, for `mm_projector.bin` and `non_lora_trainables.bin`, whose names begin in several ways."""
    return rename("model." + re.sub(r"^(base_model\.)?(model\.)*", "", stored))


def is_original(values: dict[str, Any]) -> bool:
    """Whether a `config.json` is of this layout. hf's has the same model_type, but never this field."""
    return "mm_vision_tower" in values or "mm_projector_type" in values


def read_config(folder: Path, template: str | None = None) -> LlavaConfig:
    """The model that `config.json` describes; `template` where its content does not tell. Raises LlavaError."""
    where = folder / "config.json"
    values = read_json(where)
    architecture = next(iter(values.get("architectures") or ["LlavaLlamaForCausalLM"]))
    if architecture not in FAMILIES:
        raise LlavaError(f"{where}: architecture {architecture!r} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[architecture]
    llm = decoder_config({**values, "model_type": family}, str(where))
    vision = _vision(folder, values)
    projector = values.get("mm_projector_type", "linear")
    build_projector(projector, 1, 1)  # an unknown one is an error here
    template = template or template_of(folder, family, projector)
    if template is None:
        raise LlavaError(
            f"{folder}: models of this kind were published with several templates and do not say with which; "
            "give --template llava_v0, llava_v1 or llava_llama_2"
        )
    return validate(
        LlavaConfig,
        {
            "llm": llm,
            "vision": vision,
            "image": _image(values, vision, where),
            "video": _video(values, vision, where),
            "projector": projector,
            "template": template,
            "images_first": True,
            "around_image": ("<im_start>", "<im_end>") if values.get("mm_use_im_start_end") else ("", ""),
            "base": None,
        },
        str(where),
    )


def tower_of(folder: Path) -> str:
    """The encoder that the checkpoint names: on the hub, or a folder. Raises LlavaError where it names none."""
    values = read_json(folder / "config.json")
    name = values.get("mm_vision_tower", values.get("vision_tower"))
    if not isinstance(name, str):
        raise LlavaError(f"{folder / 'config.json'}: mm_vision_tower {name!r} is no name")
    return name


def tower_name(vision: VisionConfig) -> str | None:
    """The name of the encoder in TOWERS that has this configuration, whatever layer is read out."""
    layer = {"feature_layer": -2}
    for name, values in TOWERS.items():
        known = _encoder(values, -2, "patch", name)
        select = {"feature_select": "patch"} if vision.type == "clip_vit" else {}
        if vision.model_copy(update={**layer, **select}) == known:
            return name
    return None


def _vision(folder: Path, values: dict[str, Any]) -> VisionConfig:
    where, name = folder / "config.json", tower_of(folder)
    if name in TOWERS:
        tower = TOWERS[name]
    elif (Path(name) / "config.json").exists():  # its own config says what it is; a path is no evidence
        found = read_json(Path(name) / "config.json")
        tower = {"model_type": found.get("model_type"), **found.get("vision_config", found)}
    else:
        raise LlavaError(
            f"{where}: mm_vision_tower '{name}' is neither known ({', '.join(TOWERS)}) nor a folder with a config.json"
        )
    layer, select = values.get("mm_vision_select_layer", -2), values.get("mm_vision_select_feature", "patch")
    return _encoder(tower, layer, select, f"{where}: {name}")


def _encoder(tower: dict[str, Any], layer: int, select: str, where: str) -> VisionConfig:
    if tower["model_type"] in ("clip_vision_model", "clip"):
        return clip_config(tower, layer, select, where)
    if tower["model_type"] in ("siglip_vision_model", "siglip"):
        return siglip_config(tower, -2, where)  # the original drops the last layer, whatever is selected
    raise LlavaError(f"{where}: vision encoders of type {tower['model_type']!r} are not supported")


def _image(values: dict[str, Any], vision: VisionConfig, where: Path) -> ImageConfig:
    """The aspect of pictures. SigLIP's processor squashes where CLIP's crops."""
    siglip = vision.type == "siglip_vit"
    aspect = values.get("image_aspect_ratio") or "square"
    fields: dict[str, Any] = {"size": vision.image_size, **(_SIGLIP_PIXELS if siglip else {})}
    if aspect == "pad":
        fields["aspect"] = "pad"
    elif aspect == "square":
        fields["aspect"] = "squash" if siglip else "crop"
    elif match := re.fullmatch(r"anyres(?:_max_(\d+))?", aspect):
        merge = values.get("mm_patch_merge_type", "flat")
        if merge not in ("flat", "spatial", "spatial_unpad"):
            raise LlavaError(f"{where}: mm_patch_merge_type {merge!r} is not supported")
        fields["tiling"] = TilingConfig(
            pinpoints=parse_pinpoints(values.get("image_grid_pinpoints"), vision.image_size),
            merge=merge,
            max_tiles=int(match[1]) if match[1] else None,
        )
    else:
        raise LlavaError(f"{where}: image_aspect_ratio {aspect!r} is not supported")
    return validate(ImageConfig, fields, str(where))


def _video(values: dict[str, Any], vision: VisionConfig, where: Path) -> VideoConfig | None:
    """How frames are pooled: before the projector by the resampler of April 2024, or after it."""
    if "mm_spatial_pool_mode" not in values and "mm_spatial_pool_stride" not in values:
        return None
    before = values.get("mm_resampler_type") == "spatial_pool"
    newlines = {"grid": "row", "frame": "frame", "one_token": "one_token", "no_token": "none"}
    position = values.get("mm_newline_position", "no_token" if before else "one_token")
    if position not in newlines:
        raise LlavaError(f"{where}: mm_newline_position {position!r} is not one of {', '.join(newlines)}")
    unpads = "unpad" in values.get("mm_patch_merge_type", "flat")
    newline = newlines[position] if unpads or position != "one_token" else "none"
    fields = {
        "stride": values.get("mm_spatial_pool_stride") or 1,
        "pool": values.get("mm_spatial_pool_mode") or "bilinear",
        "where": "before" if before else "after",
        "newline": newline,
        "aspect": "squash" if vision.type == "siglip_vit" else "crop",
    }
    return validate(VideoConfig, fields, f"{where}: spatial pooling")


def template_of(folder: Path, family: str, projector: str) -> str | None:
    """The template by the checkpoint's content: its family, and the special tokens that its tokenizer has.

    None where models of this kind were published with several, and do not say with which.
    """
    if family != "llama":
        return {"mistral": "mistral_instruct", "qwen2": "qwen_1_5"}[family]
    names = ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
    known = "".join(
        (folder / name).read_text(encoding="utf-8", errors="replace") for name in names if (folder / name).exists()
    )
    if "<|start_header_id|>" in known:
        return "llava_llama_3"
    if "<|im_start|>" in known:
        return "chatml_direct"
    return None if projector == "linear" else "vicuna_v1"
