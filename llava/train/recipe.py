"""A training recipe: everything that a run depends on, as one YAML file, with overrides from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from llava.config import ImageConfig, Strict, VisionConfig, validate
from llava.errors import LlavaError
from llava.files import home_of

_Path = Annotated[Path, AfterValidator(lambda path: home_of(str(path)))]  # ~ is the home folder


class NewModel(Strict):
    """A model to be put together from pre-trained parts, with a fresh projector. See LlavaConfig for the fields."""

    llm: str
    vision: str
    encoder: VisionConfig
    image: ImageConfig
    projector: str = "mlp2x_gelu"
    template: str
    system: str | None = None
    images_first: bool = True


class DataConfig(Strict):
    """LLaVA's JSON: a list of rows with `id`, `image` and `conversations`.

    max_dropped: the fraction of rows that may be unusable (no image, too long, ...) before the run stops.
    """

    path: _Path
    images: _Path
    max_dropped: float = Field(default=0.01, ge=0, le=1)


class Lora(Strict):
    """LoRA on every linear layer of the decoder (Hu et al. 2021)."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Recipe(Strict):
    """One stage of training.

    stage: `match` trains the projector, before `align`, to give pictures the mean embedding of their captions' words,
        without running the LLM; `align` the projector, with the `plain` template, and with `lora` the LLM's LoRA too;
        `finetune` the projector and the LLM.
    model: the output folder of an earlier stage, or the parts of a new model.
    encoder: how the vision encoder of an earlier stage is read out from here on: the same weights, for example in a
        finer grid.
    lora: for `finetune`, which without it trains the whole LLM, and `align`, which without it trains none of it. It
        goes on with the LoRA of a model that has one.
    train_vision: parts of the vision encoder that are trained too, by what their names begin with ("" is all of it).
        LLaVA 1.6 trains all of it in stage 2, `unfreeze_mm_vision_tower`. Not with `cache_features`.
    batch_size: samples a forward pass; a step takes `accumulation` of them.
    learning_rate: of the LLM, and of projector and vision encoder unless they have their own. Cosine to zero after
        linear warm-up.
    precision: what the model is computed in. bfloat16: by autocast; weights, gradients and the optimizer stay float32.
        It pays where the processor has units for it: GPUs, and CPUs with AVX-512-BF16 or AMX.
        auto: bfloat16 where a product in it is measured to be the faster one, as the run starts.
    compile: compile the LLM's blocks by torch.compile, as the first step runs: half a minute, then each step takes less
        time. It needs a C++ compiler.
    cache_features: keep the frozen encoder's features on disk, where no augmentation changes the pictures. They are
        what a run without it computes.
    cache: their folder; by default `cache` in the output folder. Runs share it whose data show the same pictures, in
        the same order, to the same encoder in the same precision.
    """

    stage: Literal["match", "align", "finetune"]
    output: _Path
    model: NewModel | _Path
    data: DataConfig
    lora: Lora | None = None
    train_vision: tuple[str, ...] = ()
    encoder: VisionConfig | None = None
    epochs: PositiveFloat = Field(default=1, allow_inf_nan=False)
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    max_tokens: PositiveInt = 2048
    learning_rate: PositiveFloat
    projector_learning_rate: PositiveFloat | None = None
    vision_learning_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.0
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    max_grad_norm: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 100
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    compile: bool = False
    cache_features: bool = True
    cache: _Path | None = None
    workers: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.stage == "match" and self.lora is not None:
            raise ValueError("stage match does not run the LLM; remove 'lora' or choose stage align or finetune")
        if self.train_vision and self.cache_features:
            raise ValueError("features of an encoder that is trained cannot be cached; set cache_features to false")
        if self.cache is not None and not self.cache_features:
            raise ValueError("no features are kept without cache_features; remove 'cache'")
        if self.encoder is not None and not isinstance(self.model, Path):
            raise ValueError("a new model has its encoder in model.encoder; remove 'encoder'")
        if isinstance(self.model, NewModel) and self.model.image.size != self.model.encoder.image_size:
            sizes = self.model.image.size, self.model.encoder.image_size
            raise ValueError(f"model.image.size is {sizes[0]}, model.encoder.image_size {sizes[1]}; make them equal")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`data.path=x.json`, `lora=null`).

    Raises LlavaError for a missing file, invalid YAML, an unknown key or a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LlavaError(f"{path}: recipe cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LlavaError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise LlavaError(f"{path}: expected keys and values, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return validate(Recipe, values, str(path))


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise LlavaError(f"override '{override}' is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise LlavaError(f"override '{override}': '{parent}' holds no keys")
    values[last] = value
