"""What a model is: nested, frozen configurations, stored as `config.json` of the native layout.

An unknown key is an error: nothing is guessed and nothing is dropped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

from llava.errors import LlavaError


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Precision = Literal["float32", "float16", "int8", "int4"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Storage:
    """How weights are stored: the LLM's, and whether what lies beside it has 8 bits too.

    Beside it are the vision tower, the projector, and the LLM's head.
    """

    precision: Precision
    beside_8bit: bool = False

    @property
    def head(self) -> Precision:
        """Of the LLM's head."""
        if self.beside_8bit:
            return "int8"
        return "float32" if self.precision == "float32" else "float16"


class RopeScaling(Strict):
    """How rotary positions reach past the context that the LLM was pre-trained with; see llava.models.rope.

    original_positions: that context, where it is not the decoder's `max_positions`. The other fields are those of one
    kind each: low_freq_factor and high_freq_factor of llama3, the rest of yarn.
    """

    type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


_Layers = Annotated[int, Field(ge=1, le=1000)]  # a hostile number would take all memory before any weight is read


class DecoderConfig(Strict):
    """A LLaMA-shaped decoder (Touvron et al. 2023; grouped-query attention: Ainslie et al. 2023).

    qkv_bias: Qwen2. out_bias: with it, Llama's `attention_bias`. qk_norm: Qwen3. sliding_window: Mistral 0.1; each
    token attends to so many, itself included.
    """

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: _Layers
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    rope_theta: PositiveFloat
    norm_eps: PositiveFloat
    max_positions: PositiveInt
    tie_embeddings: bool
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sliding_window: PositiveInt | None = None


class ClipVisionConfig(Strict):
    """CLIP's vision transformer (Radford et al. 2021), read out at one hidden layer as LLaVA does."""

    type: Literal["clip_vit"] = "clip_vit"
    image_size: PositiveInt = 336
    patch_size: PositiveInt = 14
    hidden_size: PositiveInt = 1024
    intermediate_size: PositiveInt = 4096
    num_layers: _Layers = 24
    num_heads: PositiveInt = 16
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # OpenAI's weights use quick_gelu
    norm_eps: PositiveFloat = 1e-5
    feature_layer: int = -2  # index into the hidden states; -1 is the last one, before the post-layernorm
    feature_select: Literal["patch", "cls_patch"] = "patch"  # "patch" drops the CLS token


class SiglipVisionConfig(Strict):
    """SigLIP's vision transformer (Zhai et al. 2023): no CLS token. The fields are CLIP's."""

    type: Literal["siglip_vit"] = "siglip_vit"
    image_size: PositiveInt = 384
    patch_size: PositiveInt = 14
    hidden_size: PositiveInt = 1152
    intermediate_size: PositiveInt = 4304
    num_layers: _Layers = 27
    num_heads: PositiveInt = 16
    activation: Literal["gelu_tanh"] = "gelu_tanh"
    norm_eps: PositiveFloat = 1e-6
    feature_layer: int = -2


_Cells = Annotated[int, Field(ge=1)]


class EfficientNetLiteConfig(Strict):
    """EfficientNet-Lite0, read out as a grid of the outputs of several of its seven stages.

    grid: n for n x n tokens, each the mean of the features of its cell; or several, whose tokens stand in that order
    (spatial pyramid pooling: He et al. 2014).
    normalize: bring each channel to mean 0 and deviation 3 on ImageNet, as the batch norms tell.
    places: and x and y of each cell, in -1..1.
    classes: then 8 times the roots of the probabilities of ImageNet's 1,000 classes, alike in all cells.
    """

    type: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: PositiveInt = 224
    stages: Annotated[tuple[Annotated[int, Field(ge=1, le=7)], ...], Field(min_length=1)] = (3, 5, 7)
    grid: _Cells | Annotated[tuple[_Cells, ...], Field(min_length=1)] = 4
    normalize: bool = False
    places: bool = False
    classes: bool = False


VisionConfig = Annotated[ClipVisionConfig | SiglipVisionConfig | EfficientNetLiteConfig, Field(discriminator="type")]


class TilingConfig(Strict):
    """Dynamic resolution (LLaVA 1.6): a picture is cut into tiles, beside a view of the whole.

    pinpoints: the resolutions (width, height) to choose from; where two tie, the first is taken.
    merge: `flat` keeps all tiles' features one after the other; `spatial` joins them to one plane; `spatial_unpad` also
    cuts off what shows only padding, and ends every row with the newline token.
    max_tiles: reduce a plane that is larger than so many tiles (`anyres_max_N`).
    rounding: of the lengths after unpadding, as the `original` or as `hf` does it.
    """

    pinpoints: tuple[tuple[int, int], ...]
    merge: Literal["flat", "spatial", "spatial_unpad"] = "spatial_unpad"
    max_tiles: int | None = None
    rounding: Literal["original", "hf"] = "original"


class VideoConfig(Strict):
    """How a video's frames become tokens (LLaVA-NeXT-Video).

    pool: how `stride` x `stride` features become one, `before` or `after` the projector.
    newline: the newline token after every `row`, every `frame`, at the end (`one_token`), or nowhere.
    aspect: how a frame becomes a square; as in ImageConfig.
    """

    stride: PositiveInt = 2
    pool: Literal["average", "max", "bilinear"] = "average"
    where: Literal["before", "after"] = "before"
    newline: Literal["none", "row", "frame", "one_token"] = "none"
    aspect: Literal["pad", "crop", "squash"] = "crop"


class ImageConfig(Strict):
    """How a picture becomes the square of pixels that the vision encoder takes.

    aspect: `pad` to a square with the mean colour (LLaVA 1.5), `crop` the centre (CLIP), or `squash`.
    tiling: cut it into several squares instead; then `aspect` is not used.
    mean, std: per channel, for pixels scaled to 0..1.
    """

    size: PositiveInt
    tiling: TilingConfig | None = None
    aspect: Literal["pad", "crop", "squash"] = "pad"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


class BaseParts(Strict):
    """Where the pre-trained parts come from: a name in `llava.registry.PARTS`, or a path.

    llm: a GGUF file. vision: a weight file of the encoder, as its authors publish it.
    """

    llm: str
    vision: str


class LlavaConfig(Strict):
    """A whole model: vision encoder, projector, decoder, and how it is spoken to."""

    layout: Literal["llava-native-1"] = "llava-native-1"
    llm: DecoderConfig
    vision: VisionConfig
    image: ImageConfig
    video: VideoConfig | None = None
    projector: str  # `linear` or `mlpNx_gelu`
    template: str  # a name in llava.chat.templates, or `jinja`: then `chat_template` is used
    chat_template: str | None = None  # the checkpoint's own, in Jinja
    system: str | None = None  # replaces the template's system text; "" leaves it out
    images_first: bool = False  # move the images of a turn before its text, as LLaVA's training data has them
    around_image: tuple[str, str] = ("", "")  # text before and after every image
    storage: Storage | None = None  # of a quantized checkpoint: its linear layers are levels and scales
    base: BaseParts | None = None  # without: the checkpoint's folder holds all parts and the tokenizer

    @property
    def has_newline(self) -> bool:
        """Whether the model has a newline token, which ends rows of image features."""
        tiling = self.image.tiling
        return (tiling is not None and tiling.merge == "spatial_unpad") or (
            self.video is not None and self.video.newline != "none"
        )


T = TypeVar("T", bound=BaseModel)


def validate(kind: type[T], values: Any, where: str) -> T:
    """Build a `kind` from plain values. Raises LlavaError that names each wrong key and where it stands."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise LlavaError(f"{where}: {_explain(error, kind)}") from None


def load_config(path: Path) -> LlavaConfig:
    """Read `config.json`. Raises LlavaError when it is missing, not JSON, or not valid."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror}); a model folder needs a config.json") from None
    except ValueError as error:
        raise LlavaError(f"{path}: is not valid JSON ({error})") from None
    return validate(LlavaConfig, values, str(path))


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            *place, last = item["loc"]
            keys, kinds = _follow(kind, place)
            known = ", ".join(name for found in kinds for name in found.model_fields)
            lines.append(f"unknown key '{'.'.join([*keys, str(last)])}' (known here: {known})")
            continue
        keys, _ = _follow(kind, item["loc"])
        key, value = ".".join(keys), item["input"]
        if item["type"] == "missing":
            lines.append(f"key '{key}' is missing")
        else:
            found = type(value).__name__ if isinstance(value, dict | list) else repr(value)
            lines.append((f"key '{key}': " if key else "") + f"{item['msg']}, found {found}")
    return "; ".join(lines)


def _follow(kind: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys along `location`, without pydantic's names for the members of a union, and the models at its end."""
    keys, kinds = [], [kind]
    for part in map(str, location):
        fields = [found.model_fields[part] for found in kinds if part in found.model_fields]
        if fields or not kinds:
            keys.append(part)
            kinds = [model for field in fields for model in _models(field.annotation)]
        else:
            kinds = [found for found in kinds if part in _member_names(found)] or kinds
    return keys, kinds


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type names: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _member_names(kind: type[BaseModel]) -> set[str]:
    """What pydantic calls a model inside a union: the value of its field `type`, or the class's name."""
    return {kind.__name__, *(str(field.default) for name, field in kind.model_fields.items() if name == "type")}
