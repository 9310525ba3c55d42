"""The engine against its peers: the same weights, prompts and threads, each in its own environment, in one run.

    benchmarks/peers.sh .peers
    python benchmarks/engine.py --peers .peers --repeats 3

SmolLM2-135M behind a random CLIP ViT-L/14-336: LLaVA-1.5's vision cost, 576 image tokens. Ours, transformers and vLLM
load one and the same folder in hf layout. llama.cpp runs the language part only (the Q4_1 file that the weights come
from, a text prompt of as many tokens): it pays nothing for the picture. Sides take turns, after a round that is not
counted; start is a process of its own each time, from its beginning to the first token of an answer about a picture.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IMAGE_TOKENS, ANSWER, CHATS = 576, 64, 8
QUESTIONS = ("What is shown in this image?", "Which colours are in it?")
Timed = Iterator[float]  # seconds since the call, one for each token


class Ours:
    """This package's engine."""

    def __init__(self, folder: Path, precision: str) -> None:
        import llava
        from llava.engine.sampling import Sampling

        self.llava, self.sampling = llava, Sampling
        self.assistant = llava.load(str(folder), device="cpu", precision=precision)  # type: ignore[arg-type]

    def request(self, picture: Path, turns: list[str]) -> Any:
        """A conversation about a picture: question, answer, question, ..."""
        from dataclasses import replace

        message, messages = self.llava.Message, []
        for index, text in enumerate(turns):
            image = [self.llava.Image(picture)] if index == 0 else []
            messages.append(message.assistant(text) if index % 2 else message.user(*image, text))
        return replace(self.assistant.request(messages), stop_ids=frozenset())

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start = time.perf_counter()
        for _ in self.assistant._engine.stream(self.request(picture, turns), self.sampling(tokens)):
            yield time.perf_counter() - start

    def together(self, pictures: list[Path]) -> None:
        requests = [self.request(picture, [QUESTIONS[0]]) for picture in pictures]
        self.assistant._engine.generate([(one, self.sampling(ANSWER)) for one in requests])


class Transformers:
    """`generate` of LlavaForConditionalGeneration in float32; it keeps nothing between calls."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.streamer = transformers.generation.streamers.BaseStreamer

    def generate(self, pictures: list[Path], turns: list[str], tokens: int, on_token: Callable[[], None]) -> None:
        import PIL.Image

        class Streamer(self.streamer):  # type: ignore[name-defined, misc]
            def put(self, value: Any) -> None:
                on_token()

            def end(self) -> None:
                pass

        images = [PIL.Image.open(picture).convert("RGB") for picture in pictures]
        inputs = self.processor(images=images, text=[prompt(turns)] * len(images), return_tensors="pt", padding=True)
        streamer = Streamer() if len(images) == 1 else None
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        self.model.generate(**inputs, **limits, streamer=streamer)

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start, times = time.perf_counter(), list[float]()
        self.generate([picture], turns, tokens, lambda: times.append(time.perf_counter() - start))
        yield from times[1:]  # the first is the prompt's

    def together(self, pictures: list[Path]) -> None:
        self.generate(pictures, [QUESTIONS[0]], ANSWER, lambda: None)


class Vllm:
    """vLLM for the CPU in float32, with its prefix cache."""

    def __init__(self, folder: Path) -> None:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, SamplingParams

        self.sampling = SamplingParams
        options: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
        self.llm = LLM(model=str(folder), limit_mm_per_prompt={"image": 1}, **options)

    def generate(self, pictures: list[Path], turns: list[str], tokens: int) -> None:
        import PIL.Image

        inputs = [
            {"prompt": prompt(turns), "multi_modal_data": {"image": PIL.Image.open(picture).convert("RGB")}}
            for picture in pictures
        ]
        sampling = self.sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.llm.generate(inputs, sampling, use_tqdm=False)

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        engine, start, count = self.llm.llm_engine, time.perf_counter(), 0
        import PIL.Image

        inputs = {"prompt": prompt(turns), "multi_modal_data": {"image": PIL.Image.open(picture).convert("RGB")}}
        engine.add_request(str(start), inputs, self.sampling(temperature=0, max_tokens=tokens, ignore_eos=True))
        while engine.has_unfinished_requests():
            for output in engine.step():
                for _ in range(len(output.outputs[0].token_ids) - count):
                    yield time.perf_counter() - start
                count = len(output.outputs[0].token_ids)

    def together(self, pictures: list[Path]) -> None:
        self.generate(pictures, [QUESTIONS[0]], ANSWER)


class LlamaCpp:
    """llama.cpp through llama-cpp-python: the language part, in Q4_1. One request after the other."""

    def __init__(self, file: Path) -> None:
        import llama_cpp

        self.llm = llama_cpp.Llama(str(file), n_ctx=4096, n_threads=2, n_threads_batch=2, verbose=False)

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start, llm = time.perf_counter(), self.llm
        seed = int(picture.stem)  # another picture: other tokens in its place
        image = [1000 + (seed * 7919 + index) % 40000 for index in range(IMAGE_TOKENS)]
        before, after = (llm.tokenize(part.encode(), add_bos=False) for part in prompt(turns).split("<image>"))
        for count, _ in enumerate(llm.generate([*before, *image, *after], temp=0.0), 1):
            yield time.perf_counter() - start
            if count == tokens:
                return

    def together(self, pictures: list[Path]) -> None:
        for picture in pictures:
            list(self.ask(picture, [QUESTIONS[0]], ANSWER))


def prompt(turns: list[str]) -> str:
    """A conversation as text, in the template that the folder has."""
    text = "<|im_start|>user\n<image>\n"
    for index, said in enumerate(turns):
        text += said + ("<|im_end|>\n<|im_start|>user\n" if index % 2 else "<|im_end|>\n<|im_start|>assistant\n")
    return text


SIDES: dict[str, Callable[[Path, Path], Any]] = {
    "ours, float32": lambda folder, file: Ours(folder, "float32"),
    "ours, float16": lambda folder, file: Ours(folder, "float16"),
    "ours, int8": lambda folder, file: Ours(folder, "int8"),
    "ours, int4": lambda folder, file: Ours(folder, "int4"),
    "transformers": lambda folder, file: Transformers(folder),
    "vLLM": lambda folder, file: Vllm(folder),
    "llama.cpp Q4_1, language only": lambda folder, file: LlamaCpp(file),
}


def serve(name: str, folder: Path, file: Path, pictures: Path) -> None:
    """A side's process: a round of figures for each line that it reads; the first answer counts as its start."""
    side = SIDES[name](folder, file)
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
            "first token (ms)": 1000 * times[0],
            f"answer of {ANSWER} tokens (ms)": 1000 * times[-1],
            "decode (tokens/s)": (ANSWER - 1) / (times[-1] - times[0]),
            f"{CHATS} chats at once (tokens/s)": CHATS * ANSWER / (time.perf_counter() - start),
            "second question: first token (ms)": 1000 * second,
        }
        print(json.dumps(figures), flush=True)


def write_model(folder: Path, gguf: Path) -> None:
    """SmolLM2 behind a random CLIP tower and projector, in hf layout."""
    import torch

    from llava.checkpoints.convert import convert, open_source, write_shards
    from llava.checkpoints.gguf import open_gguf
    from llava.config import ClipVisionConfig, ImageConfig, LlavaConfig
    from llava.files import write_text
    from llava.models.llava import LlavaModel
    from llava.tokenizer import FastTokenizer

    base = open_gguf(gguf)
    image = ImageConfig(size=336, aspect="crop")
    config = LlavaConfig(
        llm=base.config, vision=ClipVisionConfig(), image=image, projector="mlp2x_gelu", template="chatml", base=None
    )
    torch.manual_seed(0)
    tensors = {f"llm.{name}": tensor for name, tensor in base.tensors()}
    with torch.device("meta"):
        shapes = LlavaModel(config).state_dict()
    for name, empty in shapes.items():
        if not name.startswith("llm."):
            tensors[name] = torch.randn(empty.shape) * 0.02 + float("norm" in name and name.endswith("weight"))
    native = folder.parent / "native"
    native.mkdir()
    write_text(native / "config.json", config.model_dump_json(indent=2, exclude_none=True))
    assert isinstance(base.tokenizer, FastTokenizer)
    base.tokenizer.backend.save(str(native / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    write_text(native / "tokenizer_config.json", json.dumps(settings))
    write_shards(native, iter(tensors.items()), str)
    convert(open_source(native), folder, "hf")


def write_pictures(folder: Path, count: int) -> None:
    """JPEGs of the size that COCO's have, each another."""
    import numpy as np
    import PIL.Image

    folder.mkdir()
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        PIL.Image.fromarray(small).resize((640, 480)).save(folder / f"{seed}.jpg")


def run(peers: Path | None, repeats: int, only: list[str]) -> dict[str, list[dict[str, float]]]:
    """Rounds of each side, in turns."""
    from llava.fetch import resolve

    gguf = resolve("smollm2-135m-instruct")
    pythons = {"vLLM": "vllm", "llama.cpp Q4_1, language only": "llamacpp"}
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary) / "hf", Path(temporary) / "pictures"
        write_model(folder, gguf)
        write_pictures(pictures, (CHATS + 1) * (repeats + 2))
        commands = {}
        for name in only or SIDES:
            python = sys.executable
            if name in pythons:
                if peers is None:
                    continue
                python = str((peers / pythons[name] / "bin" / "python").absolute())
            arguments = ["--serve", name, str(folder), str(gguf), str(pictures)]
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
            rounds[name] = [
                {**figures, "start to first answer (s)": begun}
                for figures, begun in zip(rounds[name][1:], starts, strict=True)
            ]
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
    """The medians in Markdown."""
    names = list(next(iter(rounds.values()))[0])
    lines = [f"| | {' | '.join(rounds)} |", "| --- " * (len(rounds) + 1) + "|"]
    for name in names:
        cells = [f"{statistics.median(one[name] for one in side):.4g}" for side in rounds.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says, and print the table."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], *map(Path, sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers", type=Path, help="the folder that benchmarks/peers.sh made; without it, no such peers"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], choices=[*SIDES], metavar="SIDE")
    parser.add_argument("--output", type=Path, help="write every round here, as JSON")
    options = parser.parse_args()
    rounds = run(options.peers, options.repeats, options.only)
    print(report(rounds))
    if options.output:
        options.output.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
