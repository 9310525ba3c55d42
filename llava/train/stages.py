"""The stages of training: what is trained in each, at which rate, and what each leaves behind.

Source: Liu et al. 2023, section 4.2 (stage 1: feature alignment; stage 2: end-to-end fine-tuning).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.chat.templates import get_template
from llava.checkpoints.adapters import misfit, read_adapter
from llava.checkpoints.files import load_strict, read_safetensors, write_safetensors
from llava.checkpoints.gguf import open_gguf
from llava.checkpoints.hf_config import read_json
from llava.checkpoints.native import (
    ADAPTER,
    CONFIG,
    LLM,
    VISION,
    Loaded,
    build_processor,
    load_base,
    load_native,
    save_native,
)
from llava.config import BaseParts, LlavaConfig, VisionConfig
from llava.errors import LlavaError
from llava.fetch import Progress, resolve
from llava.files import home_of
from llava.models.llava import LlavaModel
from llava.models.vision import build_vision_encoder
from llava.registry import PARTS, PUBLISHED, model_folder
from llava.train.recipe import Lora, NewModel, Recipe


def load_model(recipe: Recipe, progress: Progress) -> Loaded:
    """The model that a recipe starts from, with everything frozen. Raises LlavaError."""
    if isinstance(recipe.model, Path):
        loaded = load_native(trained_folder(recipe.model), progress, with_adapter=_adapter_before(recipe) is None)
        return loaded if recipe.encoder is None else _read_out_as(loaded, recipe.encoder)
    return load_base(_config_of(recipe.model, progress), progress)


def trained_folder(model: Path) -> Path:
    """The folder of a model that a recipe can start from: an embedded one, or a run's output. Raises LlavaError.

    A published model is refused before it is fetched.
    """
    reason = "stands on no base parts; train from llava-smol, a recipe's output, or base parts (docs/training.md)"
    if str(model) in PUBLISHED:
        raise LlavaError(f"{model}: published models can be run, converted and merged, not trained: this one {reason}")
    folder = model_folder(str(model))
    if "layout" not in read_json(folder / CONFIG):
        raise LlavaError(f"{model}: is not of the native layout, and {reason}")
    return folder


def _adapter_before(recipe: Recipe) -> Path | None:
    """The adapter that LoRA goes on with: the one of the model that it starts from, over the LLM of its base."""
    if recipe.lora is None or not isinstance(recipe.model, Path):
        return None
    folder = model_folder(str(recipe.model))
    return folder / ADAPTER if (folder / ADAPTER).exists() and not (folder / LLM).exists() else None


def _read_out_as(loaded: Loaded, encoder: VisionConfig) -> Loaded:
    """The same weights, the vision encoder read out as another configuration says. Raises LlavaError."""
    model, vision = loaded.model, build_vision_encoder(encoder)
    before, after = model.config.vision.model_dump(), encoder.model_dump()
    changed = [key for key in after if key not in ("grid", "image_size") and after[key] != before.get(key)]
    if changed:
        told = ", ".join(f"{key} is {after[key]}, was {before.get(key)}" for key in changed)
        raise LlavaError(
            f"encoder: the features that the projector takes can only change in grid and image_size; {told}"
        )
    load_strict(vision, model.vision.state_dict(), Path("encoder"))
    model.vision = vision.requires_grad_(False).eval()
    image = model.config.image.model_copy(update={"size": encoder.image_size})
    model.config = model.config.model_copy(update={"vision": encoder, "image": image})
    return Loaded(model, build_processor(model.config, loaded.processor.tokenizer, vision.num_tokens))


def _config_of(new: NewModel, progress: Progress) -> LlavaConfig:
    get_template(new.template)  # an unknown one is an error here: the first stages do not use it
    config = LlavaConfig(
        llm=open_gguf(resolve(new.llm, progress)).config,
        vision=new.encoder,
        image=new.image,
        projector=new.projector,
        template=new.template,
        system=new.system,
        images_first=new.images_first,
        base=BaseParts(llm=_from_anywhere(new.llm), vision=_from_anywhere(new.vision)),
    )
    if config.has_newline:
        raise LlavaError("a new model has no embedding of a line's end: image.tiling.merge must be 'flat' or 'spatial'")
    return config


def _from_anywhere(part: str) -> str:
    """The name of a known part, or the absolute path of a file: a model is not always loaded from where it was made."""
    return part if part in PARTS else str(home_of(part).resolve())


def prepare(model: LlavaModel, recipe: Recipe) -> None:
    """Unfreeze what the stage trains, and add LoRA where the recipe asks for it. Seeds the random state."""
    torch.manual_seed(recipe.seed)
    if not isinstance(recipe.model, Path):
        for module in model.projector.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    model.projector.requires_grad_(True)
    for name, parameter in model.vision.named_parameters():
        parameter.requires_grad_(name.startswith(recipe.train_vision))
    names = [name for name, _ in model.vision.named_parameters()]
    for part in recipe.train_vision:
        if not any(name.startswith(part) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise LlavaError(f"train_vision: no part of the vision encoder begins with '{part}'; it has {parts}")
    if recipe.lora is not None:
        _add_lora(model, recipe.lora, _adapter_before(recipe))
    elif recipe.stage == "finetune":
        model.llm.requires_grad_(True)
    model.train()
    model.vision.eval()


def _add_lora(model: LlavaModel, lora: Lora, before: Path | None) -> None:
    """before: an adapter to go on with: as it is in a rank as high or higher, else with its largest parts."""
    try:
        import peft
    except ImportError:
        raise LlavaError("LoRA needs the package peft: pip install 'llava[train]'") from None
    # By full path: a name suffix such as q_proj would match the vision tower's layers too.
    targets = [
        name for name, module in model.llm.layers.named_modules(prefix="layers") if isinstance(module, nn.Linear)
    ]
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    peft.inject_adapter_in_model(config, model.llm)
    for module in model.llm.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # to float32, which autocast undoes: it says what to compute in

    if before is None:
        return
    for name, (a, b) in read_adapter(before).items():
        try:
            layer: Any = model.llm.get_submodule(name)
            a_now, b_now = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        except (AttributeError, KeyError):
            raise misfit(before, name) from None
        if (a.shape[1], len(b)) != (a_now.shape[1], len(b_now)):
            raise misfit(before, name)
        if len(a) > lora.rank:
            a, b = _largest_parts(a, b, lora.rank)
        with torch.no_grad():
            a_now[: len(a)] = a
            b_now[:, : len(a)] = b * (lora.rank / lora.alpha)


def _largest_parts(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (rank, in) and (out, rank) whose product is the nearest to b @ a of that rank (Eckart & Young 1936)."""
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    size = s[:rank].sqrt()
    return size[:, None] * (v[:rank] @ q_a.T), (q_b @ u[:, :rank]) * size


def parameter_groups(model: LlavaModel, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups: projector and vision may have rates of their own; biases and norms never decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = {"projector": recipe.projector_learning_rate, "vision": recipe.vision_learning_rate}
        rate = own.get(name.split(".")[0]) or recipe.learning_rate
        decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def save_trained(output: Path, model: LlavaModel, recipe: Recipe) -> None:
    """Write what was trained in the native layout: the next stage, chat and evaluation load it from there."""
    source = model_folder(str(recipe.model)) if isinstance(recipe.model, Path) else None
    tuned_before = source is not None and ((source / LLM).exists() or (source / ADAPTER).exists())
    if recipe.lora is not None:
        _save_adapter(output / ADAPTER, model, recipe.lora)
    if (tuned_before and _adapter_before(recipe) is None) or (recipe.stage == "finetune" and recipe.lora is None):
        write_safetensors(output / LLM, _without_lora(model.llm.state_dict()))
    before = read_safetensors(source / VISION) if source is not None and (source / VISION).exists() else {}
    vision = model.vision.state_dict()
    if names := [name for name in vision if name in before or name.startswith(recipe.train_vision)]:
        write_safetensors(output / VISION, {name: vision[name] for name in names})
    save_native(output, model.config, model.projector.state_dict())


def _without_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An LLM's own weights, under their own names, where peft has put adapters beside them."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if ".lora_" not in name}


def _save_adapter(folder: Path, model: LlavaModel, lora: Lora) -> None:
    import json

    import peft

    from llava.files import write_text

    tensors = {f"base_model.model.{k}": v for k, v in peft.get_peft_model_state_dict(model.llm).items()}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": model.config.base and model.config.base.llm,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors}),
        "bias": "none",
        "inference_mode": True,
    }
    write_text(folder / "adapter_config.json", json.dumps(config, indent=1) + "\n")
