"""The engine against its peers: the same weights, prompts and threads, each in its own environment, in one run.

    benchmarks/peers.sh .peers
    python benchmarks/engine.py --peers .peers --shape clip --repeats 3
    python benchmarks/engine.py --peers .peers --shape smol --repeats 3

clip: SmolLM2-135M behind a random CLIP ViT-L/14-336, LLaVA-1.5's vision cost, 576 image tokens. Ours, transformers and
vLLM load one and the same folder in hf layout. smol: llava-smol; transformers runs its LLM behind our vision encoder.
Sides that are marked as language only run no picture: other tokens stand in the place of its own, and it costs them
nothing. They are not counted among the peers for figures that a picture is part of. One side after the other runs all
its rounds, the first of which is not counted; start is a process of its own each time, from its beginning to the first
token of an answer about a picture. The second table compares the best of ours with the best peer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where a peer's environment runs this
from benchmarks.sides import (
    ANSWER,
    QUESTIONS,
    LlamaCpp,
    LlamaCppWhole,
    Ours,
    Transformers,
    TransformersLanguage,
    Vllm,
)

CHATS = 8


LANGUAGE = ", language only"
PYTHONS = {"vLLM": "vllm", "llama.cpp": "llamacpp"}  # environments by the first word of a side's name
# A side is made from the folder of the shape, the file of the LLM, and the number of image tokens.
SIDES: dict[str, dict[str, Callable[[Path, Path, int], Any]]] = {
    "clip": {
        "ours, float32": lambda folder, file, count: Ours(folder / "hf", "float32"),
        "ours, 16 bits": lambda folder, file, count: Ours(folder / "hf", "float16"),
        "ours, 16 bits, 8 beside": lambda folder, file, count: Ours(folder / "hf", "float16", True),
        "ours, 8 bits": lambda folder, file, count: Ours(folder / "hf", "int8", True),
        "ours, 4 bits, 8 beside": lambda folder, file, count: Ours(folder / "hf", "int4", True),
        "ours, stored in 8 bits": lambda folder, file, count: Ours(folder / "int8", None),
        "transformers, float32": lambda folder, file, count: Transformers(folder / "hf", "float32"),
        "transformers, bfloat16": lambda folder, file, count: Transformers(folder / "hf", "bfloat16"),
        "vLLM, float32": lambda folder, file, count: Vllm(folder / "hf", "float32"),
        "vLLM, bfloat16": lambda folder, file, count: Vllm(folder / "hf", "bfloat16"),
        "llama.cpp, Q4_1": lambda folder, file, count: LlamaCppWhole(file, folder / "mmproj.gguf"),
        f"llama.cpp, Q4_1{LANGUAGE}": lambda folder, file, count: LlamaCpp(file, count),
    },
    "smol": {
        "ours, float32": lambda folder, file, count: Ours(Path("llava-smol"), "float32"),
        "ours, 16 bits": lambda folder, file, count: Ours(Path("llava-smol"), "float16"),
        "ours, 8 bits": lambda folder, file, count: Ours(Path("llava-smol"), "int8", True),
        "ours, 4 bits, 8 beside": lambda folder, file, count: Ours(Path("llava-smol"), "int4", True),
        "transformers, float32": lambda folder, file, count: TransformersLanguage(folder / "llm"),
        f"vLLM, float32{LANGUAGE}": lambda folder, file, count: Vllm(folder / "llm", "float32", count),
        f"llama.cpp, Q4_1{LANGUAGE}": lambda folder, file, count: LlamaCpp(file, count),
    },
}
# Figures: whether more is better, whether a picture is part of it, and the aim, as a ratio to the best peer.
FIRST, WHOLE, DECODE = "first token (ms)", f"answer of {ANSWER} tokens (ms)", "decode (tokens/s)"
TOGETHER, SECOND = f"{CHATS} chats at once (tokens/s)", "second question: first token (ms)"
START = "start to first answer (s)"
AIMS = {
    FIRST: (False, True, 0.5),
    WHOLE: (False, True, 0.7),
    DECODE: (True, False, 1.0),
    TOGETHER: (True, True, 2.0),
    START: (False, True, 0.5),
}


def serve(shape: str, name: str, folder: Path, file: Path, pictures: Path, image_tokens: int) -> None:
    """A side's process: a round of figures for each line that it reads; the first answer counts as its start."""
    side = SIDES[shape][name](folder, file, image_tokens)
    next(iter(side.ask(pictures / "0.jpg", [QUESTIONS[0]], 1)))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        first = int(line)
        names = [pictures / f"{first + index}.jpg" for index in range(CHATS + 1)]
        times = list(side.ask(names[0], [QUESTIONS[0]], ANSWER))
        second = next(iter(side.ask(names[0], [QUESTIONS[0], "A gradient.", QUESTIONS[1]], 1)))
        start = time.perf_counter()
        side.together(names[1:])
        figures = {
            FIRST: 1000 * times[0],
            WHOLE: 1000 * times[-1],
            DECODE: (ANSWER - 1) / (times[-1] - times[0]),
            TOGETHER: CHATS * ANSWER / (time.perf_counter() - start),
            SECOND: 1000 * second,
        }
        print(json.dumps(figures), flush=True)


def write_model(folder: Path, gguf: Path) -> None:
    """SmolLM2 behind a random CLIP tower and projector, in hf layout."""
    import torch

    from llava.checkpoints.convert import convert, open_source, write_shards
    from llava.checkpoints.gguf import open_gguf
    from llava.config import ClipVisionConfig, ImageConfig, LlavaConfig, Storage
    from llava.files import write_text
    from llava.models.llava import LlavaModel
    from llava.tokenizer import FastTokenizer

    base = open_gguf(gguf)
    image = ImageConfig(size=336, aspect="crop")
    prompt: dict[str, Any] = {"template": "chatml", "system": "", "images_first": True}  # as all sides have it
    config = LlavaConfig(
        llm=base.config, vision=ClipVisionConfig(), image=image, projector="mlp2x_gelu", base=None, **prompt
    )
    torch.manual_seed(0)
    tensors = {f"llm.{name}": tensor for name, tensor in base.tensors()}
    with torch.device("meta"):
        shapes = LlavaModel(config).state_dict()
    for name, empty in shapes.items():
        if not name.startswith("llm."):
            tensors[name] = torch.randn(empty.shape) * 0.02 + float("norm" in name and name.endswith("weight"))
    write_tower(folder / "mmproj.gguf", tensors)
    native = folder / "native"
    native.mkdir()
    write_text(native / "config.json", config.model_dump_json(indent=2, exclude_none=True))
    assert isinstance(base.tokenizer, FastTokenizer)
    base.tokenizer.backend.save(str(native / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    write_text(native / "tokenizer_config.json", json.dumps(settings))
    write_shards(native, iter(tensors.items()), str)
    convert(open_source(native), folder / "hf", "hf")
    convert(open_source(native), folder / "int8", "native", Storage("int8", beside_8bit=True))


def write_tower(file: Path, tensors: dict[str, Any]) -> None:
    """The vision tower and projector as llama.cpp reads them. Names: llama.cpp's tools/mtmd/clip-impl.h."""
    import gguf

    writer = gguf.GGUFWriter(str(file), "clip")
    for name in ("has_vision_encoder", "has_llava_projector"):
        writer.add_bool(f"clip.{name}", True)
    writer.add_bool("clip.use_gelu", False)  # CLIP's quick_gelu
    writer.add_string("clip.projector_type", "mlp")
    sizes = {"image_size": 336, "patch_size": 14, "embedding_length": 1024, "feed_forward_length": 4096}
    for name, value in {**sizes, "projection_dim": 768, "block_count": 23, "attention.head_count": 16}.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    names = {
        "vision.embeddings.class_embedding": "v.class_embd",
        "vision.embeddings.patch_embedding": "v.patch_embd",
        "vision.embeddings.position_embedding": "v.position_embd",
        "vision.pre_layrnorm": "v.pre_ln",
        "vision.encoder.layers.": "v.blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "layer_norm1": "ln1",
        "layer_norm2": "ln2",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
        "projector.": "mm.",
    }
    for name, tensor in tensors.items():
        if name.startswith("llm."):
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        matrix = tensor.dim() > 1 and "embd" not in name
        writer.add_tensor(name, (tensor.half() if matrix else tensor.float()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_language(folder: Path) -> None:
    """llava-smol's LLM as transformers, vLLM read it."""
    from benchmarks.chat import export
    from llava.checkpoints.load import open_processor
    from llava.files import write_text
    from llava.registry import model_folder

    export(model_folder("llava-smol"), folder / "llm")
    tokenizer: Any = open_processor(model_folder("llava-smol"))[1].tokenizer
    tokenizer.backend.save(str(folder / "llm" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    write_text(folder / "llm" / "tokenizer_config.json", json.dumps(settings))


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of the size that COCO's have, each another."""
    import numpy as np
    import PIL.Image

    folder.mkdir()
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        PIL.Image.fromarray(small).resize((640, 480)).save(folder / f"{seed}.jpg")


def run(shape: str, peers: Path | None, repeats: int, only: list[str]) -> dict[str, list[dict[str, float]]]:
    """Rounds of each side."""
    import llava
    from llava.fetch import resolve

    gguf = resolve("smollm2-135m-instruct")
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary) / "model", Path(temporary) / "pictures"
        folder.mkdir()
        write_pictures(pictures, (CHATS + 1) * (repeats + 2))
        image_tokens = 576
        if shape == "clip":
            write_model(folder, gguf)
        else:
            write_language(folder)
            smol = llava.load("llava-smol", device="cpu")
            image_tokens = smol.model.vision.num_tokens
            del smol
        commands = {}
        for name in only or SIDES[shape]:
            python = sys.executable
            if environment := PYTHONS.get(name.partition(",")[0]):
                if peers is None:
                    continue
                python = str((peers / environment / "bin" / "python").absolute())
            arguments = ["--serve", shape, name, str(folder), str(gguf), str(pictures), str(image_tokens)]
            commands[name] = [python, str(Path(__file__).resolve()), *arguments]
        for name, command in commands.items():
            rounds[name] = []
            starts = []
            for count in range(repeats):
                print(f"{name}: start {count + 1} of {repeats}", file=sys.stderr)
                begun = time.perf_counter()
                process = start(command)
                starts.append(time.perf_counter() - begun)
                if count < repeats - 1:
                    stop(process)
            for count in range(repeats + 1):
                print(f"{name}: round {count} of {repeats}{'' if count else ' (not counted)'}", file=sys.stderr)
                assert process.stdin is not None and process.stdout is not None
                print((CHATS + 1) * count + 1, file=process.stdin, flush=True)
                rounds[name].append(json.loads(process.stdout.readline()))
            stop(process)
            rounds[name] = [{**figures, START: begun} for figures, begun in zip(rounds[name][1:], starts, strict=True)]
    return rounds


def start(command: list[str]) -> "subprocess.Popen[str]":
    """A side's process that has given its first answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"ready"'):
            return process
    errors.seek(0)
    raise SystemExit(f"{' '.join(command[:4])} failed:\n{errors.read()[-2000:]}")


def stop(process: "subprocess.Popen[str]") -> None:
    """End a side's process."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def report(rounds: dict[str, list[dict[str, float]]]) -> str:
    """The medians, and the best of ours against the best peer, in Markdown."""
    medians = {
        side: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for side, found in rounds.items()
    }
    names = [*AIMS, SECOND]
    lines = [f"| | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    lines += [f"| {side} | {' | '.join(f'{found[n]:.4g}' for n in names)} |" for side, found in medians.items()]
    lines += ["", "| | best of ours | best peer | ratio | aim |", "| --- | --- | --- | --- | --- |"]
    ours = {side: found for side, found in medians.items() if side.startswith("ours")}
    for name, (more, pictured, aim) in AIMS.items():
        peers = {s: f for s, f in medians.items() if s not in ours and not (pictured and s.endswith(LANGUAGE))}
        if not ours or not peers:
            continue
        best = max if more else min
        mine, theirs = (best(group, key=lambda s: group[s][name]) for group in (ours, peers))
        ratio = ours[mine][name] / peers[theirs][name]
        cells = [f"{mine}: {ours[mine][name]:.4g}", f"{theirs}: {peers[theirs][name]:.4g}", f"{ratio:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {'>=' if more else '<='} {aim} |")
    if ours:
        ratios = [f"{side.removeprefix('ours, ')} {found[SECOND] / found[FIRST]:.2f}" for side, found in ours.items()]
        lines.append(f"| second question, against our first | {'; '.join(ratios)} | | | <= 0.1 |")
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says, and print the table."""
    if sys.argv[1:2] == ["--serve"]:
        shape, name, folder, file, pictures, count = sys.argv[2:8]
        serve(shape, name, Path(folder), Path(file), Path(pictures), int(count))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers", type=Path, help="the folder that benchmarks/peers.sh made; without it, no such peers"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the models of the shape clip there")
    parser.add_argument("--shape", choices=list(SIDES), default="clip")
    parser.add_argument("--only", nargs="*", default=[], metavar="SIDE", help="some sides, as the table names them")
    parser.add_argument("--output", type=Path, help="write every round here, as JSON")
    options = parser.parse_args()
    if options.write:
        from llava.fetch import resolve

        options.write.mkdir()
        write_model(options.write, resolve("smollm2-135m-instruct"))
        return
    if unknown := [name for name in options.only if name not in SIDES[options.shape]]:
        parser.error(f"no such side: {unknown[0]}; choose of: {'; '.join(SIDES[options.shape])}")
    rounds = run(options.shape, options.peers, options.repeats, options.only)
    print(report(rounds))
    if options.output:
        options.output.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
