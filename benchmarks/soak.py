"""Many short requests with random lengths, pictures, arrivals and cancels: memory stays flat, every block comes back.

python benchmarks/soak.py --requests 10000
"""

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

import llava
from llava import Image, Message
from llava.engine.engine import Engine
from llava.engine.request import Generation
from llava.engine.sampling import Sampling


def resident() -> float:
    """Memory that this process holds now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def main() -> None:
    """Run as the command line says; exit code 1 when a request failed or a block is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="llava-smol")
    parser.add_argument("--precision", default="int8")
    options = parser.parse_args()
    assistant = llava.load(options.model, device="cpu", precision=options.precision)
    engine = Engine(assistant.model, assistant.processor.tokenizer, kv_bytes=256 * 2**20)
    dice, submitted, ended, cancelled, tokens, reused = random.Random(0), 0, 0, 0, 0, 0
    running: list[Generation] = []
    start = time.perf_counter()
    while submitted < options.requests or running:
        while submitted < options.requests and len(running) < 24 and dice.random() < 0.7:
            words = " ".join(str(dice.randrange(100)) for _ in range(dice.randrange(1, 12)))
            pixels = np.random.default_rng(dice.randrange(300)).integers(0, 256, (32, 32, 3), np.uint8)
            parts = [Image(PIL.Image.fromarray(pixels))] if dice.random() < 0.5 else []
            request = replace(assistant.request([Message.user(*parts, words)]), stop_ids=frozenset())
            running.append(engine.submit(request, Sampling(dice.randrange(1, 8), temperature=dice.choice((0.0, 1.0)))))
            submitted += 1
        if running and dice.random() < 0.2:
            engine.cancel(dice.choice(running))
        engine.step()
        for one in [one for one in running if one.finished]:
            running.remove(one)
            ended, cancelled = ended + 1, cancelled + (one.finished == "cancelled")
            tokens, reused = tokens + len(one.output), reused + one.usage.reused_tokens
            if one.error:
                sys.exit(f"a request failed: {one.error}")
            if ended % max(1, options.requests // 10) == 0:
                print(f"{ended} requests, {time.perf_counter() - start:.0f} s, {resident():.0f} MB", flush=True)
    prefixes, total = engine.scheduler.prefixes, engine.scheduler.limits.blocks
    whole = prefixes.take(total)  # forgets what is kept
    print(f"{cancelled} cancelled; {tokens} tokens given, {reused} of prompts reused; {total} blocks")
    if not whole or len(prefixes):
        sys.exit(f"blocks are missing: {prefixes.free} of {total} are free")
    print("every block came back")


if __name__ == "__main__":
    main()
