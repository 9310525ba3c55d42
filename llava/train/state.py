"""Checkpoints of a run: everything that an exact resume needs, written whole or not at all.

A checkpoint is a folder `checkpoints/step-N` with `trainable.safetensors`, `optimizer.pt` (read with `weights_only`)
and `state.json`. The newest two are kept.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.checkpoints.files import DAMAGED, read_safetensors, write_safetensors
from llava.checkpoints.native import ADAPTER, CONFIG, LLM, PROJECTOR, VISION
from llava.errors import LlavaError
from llava.files import atomic_folder, write_text

_FREE = ("cache", "workers")  # keys of a recipe that leave what is computed as it is
_KEEP = 2
FINISHED = "run.json"  # in the output folder of a run that came to its end


@dataclass
class Progress:
    """Where a run stands. recipe: what it was started with; a resume with another recipe is refused."""

    recipe: dict[str, Any]
    step: int = 0
    batches: int = 0  # batches taken from the data so far
    tokens: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)  # rows of the data that cannot be used, by reason
    corrupt: int = 0  # samples left out because a picture could not be decoded
    precision: str = ""  # that was chosen where the recipe leaves it to the machine
    begins_with: str = ""  # a hash of the data and of the model that the run starts from


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint, then delete older ones."""
    folder = output / "checkpoints"
    with atomic_folder(folder / f"step-{progress.step:08d}") as temporary:
        write_safetensors(temporary / "trainable.safetensors", trainable(model))
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        try:
            torch.save({"optimizer": optimizer.state_dict(), "random": random}, temporary / "optimizer.pt")
        except RuntimeError as error:  # what PyTorch makes of a full disk
            raise LlavaError(f"{folder}: the checkpoint cannot be written ({error})") from None
        write_text(temporary / "state.json", json.dumps(asdict(progress), indent=1))
    for old in _checkpoints(output)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Progress:
    """Restore the newest checkpoint under `output`; `progress` as given where there is none.

    Raises LlavaError when it was made with another recipe, or is damaged.
    """
    found = _checkpoints(output)
    if not found:
        return progress
    folder = found[-1]
    try:
        saved = Progress(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    except DAMAGED as error:
        raise LlavaError(f"{folder}: damaged checkpoint ({error}); delete it to go on from the one before") from None
    changed = [key for key in progress.recipe if key not in _FREE and progress.recipe[key] != saved.recipe.get(key)]
    if changed:
        raise LlavaError(
            f"{output}: holds a run with another recipe (changed: {', '.join(changed)}); "
            "choose another output, or --restart to begin anew"
        )
    if saved.begins_with and saved.begins_with != progress.begins_with:
        raise LlavaError(
            f"{output}: holds a run on other data, or from another model, than stand there now; "
            "choose another output, or --restart to begin anew"
        )
    saved.begins_with = saved.begins_with or progress.begins_with  # an earlier version did not know it
    parameters, tensors = trainable(model), read_safetensors(folder / "trainable.safetensors")
    if parameters.keys() != tensors.keys():
        raise LlavaError(f"{folder}: holds other trainable parameters than the recipe has")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return saved


def last_precision(output: Path) -> str | None:
    """What the run under `output` is computed in, where there is one to go on with."""
    found = _checkpoints(output)
    try:
        return json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))["precision"] if found else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # loading it says more


def parts_in(output: Path) -> list[str]:
    """What of a model lies under `output`."""
    return [name for name in (PROJECTOR, VISION, LLM, ADAPTER) if (output / name).exists()]


def discard_checkpoints(output: Path) -> None:
    """Delete the checkpoints under `output`; what else lies in their folder stays."""
    for path in (*_checkpoints(output), *(output / "checkpoints").glob(".step-*.tmp")):  # killed while it was written
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # not empty, or not there
        (output / "checkpoints").rmdir()


def discard_run(output: Path) -> None:
    """Forget an earlier run under `output`, finished or not; cached features stay."""
    discard_checkpoints(output)
    for name in (FINISHED, "log.jsonl", CONFIG, PROJECTOR, VISION, LLM):
        (output / name).unlink(missing_ok=True)
    for name in (ADAPTER, "tensorboard"):
        shutil.rmtree(output / name, ignore_errors=True)


def _checkpoints(output: Path) -> list[Path]:
    folder = output / "checkpoints"
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
