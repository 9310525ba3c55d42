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
    from llava.config import Precision
    from llava.fetch import Progress

__all__ = ["Image", "LlavaError", "Message", "Video", "load"]
__version__ = "0.1.0"


def load(
    name: str,
    *,
    device: str | None = None,
    precision: "Precision | None" = None,
    beside_8bit: bool = False,
    compile: bool = False,
    template: str | None = None,
    progress: "Progress | None" = None,
) -> "Assistant":
    """Load a model by name, hub id or folder, ready to chat; see `llava.assistant.Assistant`.

    template: a chat template's name, where the checkpoint does not say which it was trained with.
    device: where it runs, as PyTorch names it ("cpu", "cuda:1"); by default a GPU where there is one.
    precision: how weights are stored: "float32", "float16" (on a CPU computed in float32), "int8" or "int4"; by
        default 16 bits, or what a quantized checkpoint was stored in.
    compile: let `torch.compile` capture decoding in CUDA graphs (GPUs, 16 or 32 bits; never run on one so far).
    beside_8bit: store the vision tower, the projector and the LLM's head in 8 bits too.
    progress: called with (what, bytes so far, bytes in all) while parts are fetched.
    Raises LlavaError for an unknown name or a damaged model.
    """
    import torch

    from llava.assistant import Assistant  # torch is imported only when a model is wanted
    from llava.checkpoints.load import load_checkpoint, storage_for
    from llava.checkpoints.native import default_device
    from llava.fetch import quiet
    from llava.registry import model_folder, published_template

    template = template or published_template(name)
    place = torch.device(device) if device else default_device()
    folder = model_folder(name)
    storage = storage_for(folder, precision, beside_8bit)
    if compile and (place.type != "cuda" or storage.precision in ("int8", "int4")):
        raise LlavaError(f"compile is for 16 or 32 bits on a GPU, not for {storage.precision} on {place}")
    loaded = load_checkpoint(folder, progress or quiet, template, (storage, place))
    if compile:
        from llava.engine.compiled import compile_blocks

        compile_blocks(loaded.model)
    return Assistant(loaded)
