"""How far the engine is from what the machine can do: arithmetic over its matrix rate, weights over its memory's speed.

A picture, a prompt, a token, eight chats at once, and the start of a process up to its first answer.

    python benchmarks/limits.py llava-smol
    python benchmarks/engine.py --shape clip --write /tmp/clip
    python benchmarks/limits.py /tmp/clip/hf --precision int8 --beside-8bit

`rate` is that of this precision's linear kernel on a matrix that fits the caches; `speed` is that of summing up a large
tensor. Linear layers and attention are counted, nothing else is: what is above the limit is everything else.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import llava
from llava.config import DecoderConfig, Storage
from llava.decoding import build
from llava.decoding.step import Step, covers
from llava.engine.sampling import Sampling
from llava.measure import least
from llava.models.cache import CacheBatch, KVCache
from llava.quantization.footprint import PRECISIONS, footprint
from llava.quantization.kernels import pack_linear
from llava.quantization.linears import HalfLinear

MILLI = 1e3
CHATS, ANSWER = 8, 64
QUESTION = "What is shown in this image?"
# A process's start in parts; the model's file and how it is stored come as JSON.
START = """
import json, sys, time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
import PIL.Image, llava
model, options = json.loads(sys.argv[1])
assistant = llava.load(model, device="cpu", **options)
times.append(time.perf_counter())
picture = llava.Image(PIL.Image.radial_gradient("L").resize((640, 480)).convert("RGB"))
next(assistant.stream([llava.Message.user(picture, "What is shown in this image?")], max_new_tokens=1), None)
times.append(time.perf_counter())
print(json.dumps([later - earlier for earlier, later in zip(times, times[1:])]))
"""


def best(run: Callable[[], object], rounds: int = 5) -> float:
    """The least seconds of some rounds."""
    run()
    return least(run, rounds)


def matrix_rate(precision: llava.config.Precision) -> float:
    """Operations a second of a linear layer, 512 rows."""
    layer, x = pack_linear(torch.randn(4096, 1024), None, precision), torch.randn(512, 1024)
    return 2 * 512 * 4096 * 1024 / best(lambda: layer(x))


def memory_speed() -> float:
    """Bytes read a second."""
    large = torch.ones(2**27)
    return large.nbytes / best(large.sum)


def decoder_operations(config: DecoderConfig, tokens: int, before: int) -> tuple[float, float]:
    """Of linear layers and of attention, for so many tokens after others."""
    heads = config.num_heads * config.head_dim
    qkv = config.hidden_size * (heads + 2 * config.num_kv_heads * config.head_dim)
    weights = qkv + heads * config.hidden_size + 3 * config.hidden_size * config.intermediate_size
    seen = tokens * before + tokens * tokens / 2
    return 2.0 * tokens * weights * config.num_layers, 4.0 * seen * heads * config.num_layers


def vision_operations(model: nn.Module, tokens: int) -> tuple[float, float]:
    """Of a vision transformer's linear layers and attention; (0, 0) for other encoders."""
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    widths = [layer.out_features for name, layer in model.named_modules() if name.endswith("q_proj")]
    operations = 2.0 * tokens * sum(layer.weight.numel() for layer in linears)
    return operations, 4.0 * tokens * tokens * sum(widths)


def chats(assistant: Any) -> str:
    """How long eight chats about pictures that were not seen before take together, and in what."""
    engine, taken = assistant._engine, dict[str, float]()

    def timed(place: Any, name: str, label: str) -> None:
        inner = getattr(place, name)

        def outer(*arguments: Any) -> Any:
            begun = time.perf_counter()
            found = inner(*arguments)
            taken[label] = taken.get(label, 0) + time.perf_counter() - begun
            return found

        setattr(place, name, outer)

    def ask(first: int) -> None:
        pictures = [PIL.Image.new("RGB", (640, 480), (first + index, 99, 9)) for index in range(CHATS)]
        messages = [[llava.Message.user(llava.Image(picture), QUESTION)] for picture in pictures]
        requests = [replace(assistant.request(one), stop_ids=frozenset()) for one in messages]
        engine.generate([(one, Sampling(ANSWER, lookup=False)) for one in requests])

    ask(0)
    timed(assistant.model.vision, "forward", "pictures")
    timed(engine, "_run", "the decoder")
    begun = time.perf_counter()
    ask(100)
    whole = time.perf_counter() - begun
    taken["everything else"] = whole - sum(taken.values())
    return f"{whole:.1f} s ({', '.join(f'{label} {seconds:.1f}' for label, seconds in taken.items())})"


def start(options: argparse.Namespace) -> str:
    """How long a process takes that gives one token about a picture, from its beginning to its end; the best."""
    stored = {"precision": options.precision, "beside_8bit": options.beside_8bit}
    command = [sys.executable, "-c", START, json.dumps([options.model, stored])]
    runs = []
    for _ in range(options.starts):
        begun = time.perf_counter()
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        parts = json.loads(found.stdout)
        runs.append((time.perf_counter() - begun, parts))
    whole, (torch_, loading, answer) = min(runs)
    rest = whole - torch_ - loading - answer
    parts = (
        f"PyTorch {torch_:.1f}, loading {loading:.1f}, first token {answer:.1f}, Python's own start and end {rest:.1f}"
    )
    return f"start: {whole:.1f} s ({parts})"


@torch.inference_mode()
def main() -> None:
    """Measure as the command line says, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("--precision", default="float16", choices=PRECISIONS)
    parser.add_argument("--beside-8bit", action="store_true")
    parser.add_argument("--starts", type=int, default=3, help="how often a process is started (default 3)")
    options = parser.parse_args()
    storage = Storage(options.precision, options.beside_8bit)
    assistant = llava.load(options.model, device="cpu", precision=options.precision, beside_8bit=options.beside_8bit)
    build.wait()
    model, config = assistant.model, assistant.model.config
    beside: llava.config.Precision = "int8" if options.beside_8bit else "float32"
    rate, beside_rate, speed = matrix_rate(storage.precision), matrix_rate(beside), memory_speed()
    attention = matrix_rate("float32")
    print(f"rate {rate / 1e9:.0f} GFLOP/s ({storage.precision}), beside {beside_rate / 1e9:.0f} ({beside});", end=" ")
    print(f"speed {speed / 1e9:.1f} GB/s")

    picture = llava.Image(PIL.Image.radial_gradient("L").resize((640, 480)).convert("RGB"))
    request = assistant.request([llava.Message.user(picture, QUESTION)])
    views = request.images[0].views()
    seconds = best(lambda: model.vision(views))
    with torch.device("meta"):
        from llava.models.vision import build_vision_encoder

        plain = build_vision_encoder(config.vision)
    linear, seen = vision_operations(plain, plain.num_tokens + 1)
    limit = picture_limit = linear / beside_rate + seen / attention
    print(f"picture: {seconds * MILLI:.0f} ms, limit {limit * MILLI:.0f} ms ({(linear + seen) / 1e9:.0f} GFLOP)")

    tokens = len(request.ids)
    cache = KVCache(config.llm, model.device, model.dtype, tokens + 8)
    ids, none = torch.randint(0, config.llm.vocab_size, (1, tokens)), torch.empty(0, config.llm.hidden_size)

    def read() -> None:
        cache.length = 0
        model(ids, none, CacheBatch([cache], [tokens]))

    seconds = best(read)
    linear, seen = decoder_operations(config.llm, tokens, 0)
    limit = prompt_limit = linear / rate + seen / attention
    print(f"prompt of {tokens} tokens: {seconds * MILLI:.0f} ms, limit {limit * MILLI:.0f} ms", end=" ")
    print(f"({(linear + seen) / 1e9:.0f} GFLOP)")

    def by_torch() -> None:
        cache.length = tokens
        model.llm.logits(model(ids[:, :1], none, CacheBatch([cache], [1]))[0]).argmax(-1).tolist()

    function = build.function("step") if covers(model) else None
    compiled = Step(model, function) if function else None

    def step() -> None:
        cache.length = tokens
        assert compiled is not None
        compiled.run(ids[0, :1].tolist(), none, [cache], [1], [0]).argmax(-1).tolist()

    rounds = [(best(step, 10) if compiled else 0.0, best(by_torch, 10)) for _ in range(3)]  # in turns
    seconds, others = (min(one) for one in zip(*rounds, strict=True))
    table, head = model.llm.embed_tokens.weight, model.llm.lm_head
    shared = head is None or (isinstance(head, HalfLinear) and head.weight.data_ptr() == table.data_ptr())
    weights = footprint(config, storage)["LLM"].bytes - (0 if shared else table.nbytes)  # of the table, a row is read
    stored = 2 * 4 * config.llm.num_layers * config.llm.num_kv_heads * config.llm.head_dim * tokens
    limit = (weights + stored) / speed
    taken = f"{seconds * MILLI:.1f} ms compiled, " if compiled else ""
    print(f"a token after it: {taken}{others * MILLI:.1f} ms layer by layer, limit {limit * MILLI:.1f} ms", end=" ")
    print(f"({weights / 1e6:.0f} MB of weights, {stored / 1e6:.0f} MB of keys and values)")
    limit = CHATS * (picture_limit + prompt_limit) + ANSWER * (weights + CHATS * stored) / speed
    print(f"{CHATS} chats at once: {chats(assistant)}, limit {limit:.1f} s")
    print(start(options))
    if compiled:
        return
    print()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(10):
            by_torch()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    print("| operation of a decoding step | part of its time | calls |\n| --- | --- | --- |")
    for row in rows[:10]:
        print(f"| {row.key.rpartition('::')[2]} | {row.self_cpu_time_total / whole:.0%} | {row.count // 10} |")


if __name__ == "__main__":
    main()
