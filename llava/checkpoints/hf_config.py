"""Hugging Face's `config.json` of LLMs and vision encoders, as this package's configurations.

Keys that do not change what is computed are passed over; a value that would need code that is not here is an error.
Defaults are those of transformers' configuration classes: published configs leave them out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.config import ClipVisionConfig, DecoderConfig, RopeScaling, SiglipVisionConfig, validate
from llava.errors import LlavaError

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_QWEN: dict[str, Any] = {**_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}

# model_type: what its configurations leave out. Yi and Vicuna are `llama`.
DECODERS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {**_QWEN, "num_key_value_heads": 32},
    "qwen3": {**_QWEN, "num_key_value_heads": 32, "head_dim": 128},
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LlavaError when it is missing or not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise LlavaError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise LlavaError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def decoder_config(values: dict[str, Any], where: str) -> DecoderConfig:
    """The decoder that an LLM's configuration describes; `where` names it in errors. Raises LlavaError."""
    kind = values.get("model_type", "llama")
    if kind not in DECODERS:
        raise LlavaError(f"{where}: LLMs of type '{kind}' are not supported; these are: {', '.join(DECODERS)}")
    values = DECODERS[kind] | {key: value for key, value in values.items() if value is not None or key in _NULLABLE}
    for key, allowed in (("hidden_act", "silu"), ("mlp_bias", False), ("quantization_config", None)):
        if values.get(key, allowed) != allowed:
            raise LlavaError(f"{where}: {key} {values[key]!r} is not supported, only {allowed!r} is")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise LlavaError(f"{where}: rope_parameters or rope_scaling: expected an object, found {rope!r}")
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise LlavaError(f"{where}: partial_rotary_factor is not supported")
    for key in ("hidden_size", "num_attention_heads"):
        if not isinstance(values[key], int) or values[key] < 1:
            raise LlavaError(f"{where}: key '{key}': expected a positive number, found {values[key]!r}")
    heads = values["num_attention_heads"]
    bias = bool(values.get("attention_bias", False))
    return validate(
        DecoderConfig,
        {
            "vocab_size": values["vocab_size"],
            "hidden_size": values["hidden_size"],
            "intermediate_size": values["intermediate_size"],
            "num_layers": values["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": values.get("num_key_value_heads", heads),
            "head_dim": values.get("head_dim", values["hidden_size"] // heads),
            "rope_theta": rope.get("rope_theta", values.get("rope_theta", 10000.0)),
            "rope_scaling": _rope_scaling(rope, where),
            "norm_eps": values["rms_norm_eps"],
            "max_positions": values["max_position_embeddings"],
            "tie_embeddings": values.get("tie_word_embeddings", False),
            "qkv_bias": bias or kind == "qwen2",
            "out_bias": bias and kind != "qwen2",
            "qk_norm": kind == "qwen3",
            "sliding_window": _sliding_window(values, kind, where),
        },
        where,
    )


_NULLABLE = ("sliding_window",)  # null means none, not the default


def _sliding_window(values: dict[str, Any], kind: str, where: str) -> int | None:
    if kind == "mistral":
        window: int | None = values["sliding_window"]
        return window
    if values.get("use_sliding_window", False):
        raise LlavaError(f"{where}: a sliding window in some layers only (use_sliding_window) is not supported")
    return None


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    names = {name: name for name in RopeScaling.model_fields if name not in ("type", "original_positions")}
    names["original_max_position_embeddings"] = "original_positions"
    found = {names[key]: value for key, value in rope.items() if key in names and value is not None}
    return validate(RopeScaling, {"type": kind, **found}, f"{where}: rope scaling")


def clip_config(values: dict[str, Any], layer: int, select: str, where: str) -> ClipVisionConfig:
    """CLIP's vision encoder read out at hidden state `layer`; `select` is `patch` or `cls_patch`. Raises LlavaError."""
    get = _with_defaults(values, image_size=224, patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu")
    fields = {"activation": get("hidden_act"), "feature_layer": layer, "feature_select": select}
    return validate(ClipVisionConfig, {**_vit_fields(get), **fields}, where)


def siglip_config(values: dict[str, Any], layer: int, where: str) -> SiglipVisionConfig:
    """SigLIP's vision encoder read out at hidden state `layer`. Raises LlavaError."""
    get = _with_defaults(values, image_size=224, patch_size=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
    activation = {"gelu_pytorch_tanh": "gelu_tanh"}.get(get("hidden_act"), get("hidden_act"))
    return validate(SiglipVisionConfig, {**_vit_fields(get), "activation": activation, "feature_layer": layer}, where)


def _with_defaults(values: dict[str, Any], **defaults: Any) -> Callable[[str], Any]:
    base = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return {**base, **defaults, **values}.__getitem__


def _vit_fields(get: Callable[[str], Any]) -> dict[str, Any]:
    return {
        "image_size": get("image_size"),
        "patch_size": get("patch_size"),
        "hidden_size": get("hidden_size"),
        "intermediate_size": get("intermediate_size"),
        "num_layers": get("num_hidden_layers"),
        "num_heads": get("num_attention_heads"),
        "norm_eps": get("layer_norm_eps"),
    }
