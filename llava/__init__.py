"""LLaVA, rebuilt: a large language-and-vision assistant.

import llava
model = llava.load("llava-smol")
text = model.chat([llava.Message.user("What is this?", llava.Image("cat.png"))])
"""

from typing import TYPE_CHECKING

from llava.chat.messages import Image, Message, Video
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.fetch import Progress
    from llava.quantization.linears import Precision

__all__ = ["Image", "LlavaError", "Message", "Video", "load"]
__version__ = "0.1.0"


def load(
    name: str,
    *,
    device: str | None = None,
    precision: "Precision | None" = None,
    beside_8bit: bool = False,
    template: str | None = None,
    progress: "Progress | None" = None,
) -> "Assistant":
    """Load a model by name, hub id or folder, ready to chat; see `llava.assistant.Assistant`.

    template: a chat template's name, where the checkpoint does not say which it was trained with.
    device: where it runs, as PyTorch names it ("cpu", "cuda:1"); by default a GPU where there is one.
    precision: how weights are stored: "float32", "float16" (on a CPU computed in float32), "int8" or "int4"
        (CPU only); by default 16 bits.
    beside_8bit: store the vision tower, the projector and the LLM's head in 8 bits too (CPU only).
    progress: called with (what, bytes so far, bytes in all) while parts are fetched.
    Raises LlavaError for an unknown name or a damaged model.
    """
    import torch

    from llava.assistant import Assistant  # torch is imported only when a model is wanted
    from llava.checkpoints.load import load_checkpoint
    from llava.checkpoints.native import default_device
    from llava.fetch import quiet
    from llava.quantization.pack import Storage
    from llava.registry import model_folder, published_template

    template = template or published_template(name)
    place = torch.device(device) if device else default_device()
    packed = Storage(precision or "float16", beside_8bit) if place.type == "cpu" else None
    if packed is None and (beside_8bit or precision in ("int8", "int4")):
        raise LlavaError(f"{precision} is for CPUs so far; on {place} choose float16 or float32")
    loaded = load_checkpoint(model_folder(name), progress or quiet, template, packed)
    if packed is None:  # a GPU computes in the type that it stores; the original's inference is in float16
        loaded.model.to(place, torch.float32 if precision == "float32" else torch.float16)
    return Assistant(loaded)
