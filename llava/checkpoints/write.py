"""Configurations and names of the hf and original layouts, from this package's: the inverse of `hf` and `original`.

What a layout cannot say is an error; nothing is dropped.
"""

from typing import Any

from llava.chat.templates import JINJA
from llava.config import ClipVisionConfig, DecoderConfig, LlavaConfig, SiglipVisionConfig, VisionConfig
from llava.errors import LlavaError

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}


def hf_name(name: str) -> str:
    """A tensor of LlavaModel under the name that the hub's hf files have."""
    part, _, rest = name.partition(".")
    if part == "projector":
        index, _, kind = rest.partition(".")
        return f"multi_modal_projector.linear_{ {'0': 1, '2': 2}[index] }.{kind}"
    if part == "vision":
        return f"vision_tower.vision_model.{rest}"
    if part == "llm":
        return f"language_model.{rest}" if rest.startswith("lm_head.") else f"language_model.model.{rest}"
    return name


def original_name(name: str) -> str:
    """A tensor of LlavaModel under the original's name."""
    part, _, rest = name.partition(".")
    if part == "projector":
        return f"model.mm_projector.{rest}"
    if part == "vision":
        return f"model.vision_tower.vision_tower.vision_model.{rest}"
    if part == "llm":
        return rest if rest.startswith("lm_head.") else f"model.{rest}"
    return f"model.{name}"


def family_of(llm: DecoderConfig) -> str:
    """The model_type of an LLM."""
    if llm.qk_norm:
        return "qwen3"
    if llm.qkv_bias and not llm.out_bias:
        return "qwen2"
    return "mistral" if llm.sliding_window is not None else "llama"


def text_values(llm: DecoderConfig) -> dict[str, Any]:
    """An LLM's configuration as Hugging Face writes it."""
    values: dict[str, Any] = {
        "model_type": family_of(llm),
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "rope_theta": llm.rope_theta,
        "rms_norm_eps": llm.norm_eps,
        "max_position_embeddings": llm.max_positions,
        "tie_word_embeddings": llm.tie_embeddings,
        "hidden_act": "silu",
    }
    if llm.sliding_window is not None:
        values["sliding_window"] = llm.sliding_window
    if llm.out_bias:
        values["attention_bias"] = True
    if scaling := llm.rope_scaling:
        fields = scaling.model_dump(exclude={"type", "original_positions"}, exclude_defaults=True)
        fields |= {"rope_type": scaling.type, "factor": scaling.factor}
        if scaling.type == "llama3":
            fields |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        if scaling.original_positions is not None:
            fields["original_max_position_embeddings"] = scaling.original_positions
        values["rope_scaling"] = fields
    return values


def transformer_of(vision: VisionConfig) -> ClipVisionConfig | SiglipVisionConfig:
    """The encoder, if it is one that the hf and original layouts know. Raises LlavaError."""
    if vision.type == "efficientnet_lite0":
        raise LlavaError("the vision encoder efficientnet_lite0 exists in the native layout only")
    return vision


def vision_values(vision: ClipVisionConfig | SiglipVisionConfig) -> dict[str, Any]:
    """A vision encoder's configuration as Hugging Face writes it."""
    return {
        "model_type": "clip_vision_model" if vision.type == "clip_vit" else "siglip_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": _ACTIVATIONS[vision.activation],
    }


def hf_values(config: LlavaConfig, image_token: int, video_token: int | None, vocabulary: int) -> dict[str, Any]:
    """`config.json` of the hf layout. vocabulary: its size in the source, before tokens for images were added.

    Raises LlavaError for what it cannot say.
    """
    vision, tiling, video = transformer_of(config.vision), config.image.tiling, config.video
    kind = "llava" if tiling is None else "llava_next" if video is None else "llava_next_video"
    if config.projector != "mlp2x_gelu":
        raise LlavaError(f"the hf layout knows the projector mlp2x_gelu only, this model's is {config.projector}")
    if tiling is not None and (tiling.merge != "spatial_unpad" or tiling.max_tiles is not None):
        raise LlavaError("the hf layout knows tiles merged as spatial_unpad only, without a limit of their number")
    if video is not None and (tiling is None or (video.where, video.newline) != ("before", "none")):
        raise LlavaError("the hf layout knows videos pooled before the projector only, without newline tokens")
    full = vision.type == "siglip_vit" or (vision.type == "clip_vit" and vision.feature_select == "cls_patch")
    values: dict[str, Any] = {
        "model_type": kind,
        "architectures": [{"llava": "Llava", "llava_next": "LlavaNext"}.get(kind, "LlavaNextVideo") + _GENERATES],
        "text_config": text_values(config.llm),
        "vision_config": vision_values(vision),
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "full" if full else "default",
        "tie_word_embeddings": config.llm.tie_embeddings,
        "llava_vocab_size": vocabulary,  # ours: rows beyond it were added for the image tokens
    }
    if tiling is not None:
        values["image_grid_pinpoints"] = [[height, width] for width, height in tiling.pinpoints]
    if video is not None:
        values["video_token_index"] = video_token
        values |= {"spatial_pool_mode": video.pool, "spatial_pool_stride": video.stride}
    return values


_GENERATES = "ForConditionalGeneration"


def hf_preprocessor(config: LlavaConfig) -> dict[str, Any]:
    """`preprocessor_config.json` of the hf layout."""
    image = config.image
    values: dict[str, Any] = {
        "image_processor_type": "LlavaNextImageProcessor" if image.tiling else "CLIPImageProcessor",
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "size": {"shortest_edge": image.size},
        "crop_size": {"height": image.size, "width": image.size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    if image.tiling:
        values["image_grid_pinpoints"] = [[height, width] for width, height in image.tiling.pinpoints]
    elif image.aspect == "pad":
        values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    elif image.aspect == "squash":
        values |= {"do_center_crop": False, "size": {"height": image.size, "width": image.size}}
    return values


def original_values(config: LlavaConfig, tower: str) -> dict[str, Any]:
    """`config.json` of the original layout; `tower` is what it calls its encoder. Raises LlavaError."""
    vision = transformer_of(config.vision)
    family = family_of(config.llm)
    if family == "llama" and _instructs_as_mistral(config):
        family = "mistral"
    if vision.type == "siglip_vit" and vision.feature_layer != -2:
        raise LlavaError(f"the original layout reads SigLIP out at layer -2 only, this model at {vision.feature_layer}")
    if family not in _ARCHITECTURES:
        raise LlavaError(f"the original layout has no architecture for LLMs of type {family}")
    llm = text_values(config.llm)
    llm["model_type"] = "llava"
    if family == "mistral":
        llm["sliding_window"] = config.llm.sliding_window  # None too: where it is not said, 4,096 is meant
    values: dict[str, Any] = {
        **llm,
        "architectures": [_ARCHITECTURES[family]],
        "mm_vision_tower": tower,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": config.projector,
        "mm_vision_select_layer": vision.feature_layer,
        "mm_vision_select_feature": vision.feature_select if vision.type == "clip_vit" else "patch",
        "mm_use_im_start_end": config.around_image != ("", ""),
        **_aspect_values(config),
    }
    if video := config.video:
        newlines = {"row": "grid", "frame": "frame", "one_token": "one_token", "none": "no_token"}
        values |= {"mm_spatial_pool_mode": video.pool, "mm_spatial_pool_stride": video.stride}
        values["mm_newline_position"] = newlines[video.newline]
        if video.where == "before":
            values["mm_resampler_type"] = "spatial_pool"
    return values


def _instructs_as_mistral(config: LlavaConfig) -> bool:
    """Whether the chat template is Mistral's, which the original tells by the LLM's family, window or not."""
    if config.template != JINJA:
        return config.template == "mistral_instruct"
    own = config.chat_template or ""
    return "[INST]" in own and "<<SYS>>" not in own  # which is LLaMA 2's


def _aspect_values(config: LlavaConfig) -> dict[str, Any]:
    tiling = config.image.tiling
    if tiling is None:
        square = "squash" if config.vision.type == "siglip_vit" else "crop"
        if config.image.aspect not in ("pad", square):
            raise LlavaError(f"the original layout cannot say that pictures are made square by: {config.image.aspect}")
        return {"image_aspect_ratio": "pad" if config.image.aspect == "pad" else "square"}
    limit = "" if tiling.max_tiles is None else f"_max_{tiling.max_tiles}"
    return {
        "image_aspect_ratio": f"anyres{limit}",
        "image_grid_pinpoints": [list(pair) for pair in tiling.pinpoints],
        "mm_patch_merge_type": tiling.merge,
    }
