"""The server under load, and what HTTP costs.

python benchmarks/serve.py load --clients 200 --seconds 300
python benchmarks/serve.py throughput

load: streaming clients against `llava serve` with the embedded model; some of them leave early, ask wrongly
or read slowly. Exit status 1 when a good request fails or a block of keys and values does not come back.
throughput: the same greedy texts through HTTP and straight through the engine, each in a process of its own.
"""

import argparse
import asyncio
import base64
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parents[1] / "examples" / "shape.png"
URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
SUBJECTS = ["sea", "sky", "rain", "sun", "moon", "tree", "bird", "fish", "stone", "road", "house", "bread", "clock"]
NO_END = {"0": -100, "1": -100, "2": -100}  # answers go on to their longest: the embedded model's own are a word long
KINDS = {"good": 0.8, "leaves": 0.08, "wrong": 0.07, "slow": 0.05}  # of requests, and how many


@dataclass
class Seen:
    """What clients saw: outcomes, seconds to first tokens and between them, tokens, and the server's memory in MB."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """`llava serve` on a free port; host and port."""
    command = [sys.executable, "-m", "llava", "serve", "--no-keys", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://([\d.]+):(\d+)/", line)
        if not found:
            sys.exit(f"the server did not start: {line}{process.stderr.read()}")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield found[1], int(found[2])
        finally:
            process.terminate()
            process.wait()
            drain.wait()


def question(subject: str, tokens: int, picture: bool) -> dict[str, Any]:
    """A request's body."""
    text: list[dict[str, Any]] = [{"type": "text", "text": f"Write a few words about the {subject}."}]
    parts = [{"type": "image_url", "image_url": {"url": URL}}, *text] if picture else text
    more = {"max_tokens": tokens, "logit_bias": NO_END, "stream": True}
    return {"messages": [{"role": "user", "content": parts}], **more}


def beginning(number: int) -> str:
    """A text that the model goes on with for long."""
    return f"{number}. Once upon a time, the {SUBJECTS[number % len(SUBJECTS)]} and the king"


async def ask(address: tuple[str, int], body: dict[str, Any], kind: str, seen: Seen) -> None:
    """One request on a connection of its own: a conversation, or a text that goes on."""
    path = "chat/completions" if "messages" in body else "completions"
    reader, writer = await asyncio.open_connection(*address)
    try:
        data = json.dumps(body).encode()
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + data)
        start = last = time.perf_counter()
        status = int((await reader.readline()).split()[1])
        if kind == "wrong":
            seen.outcomes["refused" if status == 400 else f"wrong, but {status}"] += 1
            return
        if status != 200:
            seen.outcomes[f"{kind}: status {status}"] += 1
            return
        count, done = 0, False
        while line := await reader.readline():
            done = done or line.startswith(b"data: [DONE]")
            if b'"content":"' in line and b'"content":""' not in line:
                now = time.perf_counter()
                if count == 0:
                    seen.first.append(now - start)
                elif kind != "slow":  # whose pauses are its own
                    seen.between.append(now - last)
                last, count = now, count + 1
                seen.tokens += 1
                if kind == "leaves" and count == 3:
                    break
                if kind == "slow":
                    await asyncio.sleep(0.2)
        seen.outcomes[kind if done or kind == "leaves" else f"{kind}: cut off"] += 1
    finally:
        writer.close()


async def metrics(address: tuple[str, int]) -> dict[str, float]:
    """The server's gauges, summed over models."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    values: dict[str, float] = {}
    for name, value in re.findall(r"^(llava_\w+)(?:\{.*\})? ([\d.e+]+)\r?$", text, re.MULTILINE):
        values[name] = values.get(name, 0) + float(value)
    return values


async def load(address: tuple[str, int], clients: int, seconds: float) -> Seen:
    """Clients that ask again and again until the time is over."""
    seen, end = Seen(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        dice = random.Random(number)
        while time.perf_counter() < end:
            (kind,) = dice.choices(list(KINDS), list(KINDS.values()))
            body = question(dice.choice(SUBJECTS), dice.randrange(4, 40), dice.random() < 0.5)
            if kind == "wrong":
                body["temperature"] = -1
            try:
                await ask(address, body, kind, seen)
            except (OSError, IndexError, ValueError) as error:
                seen.outcomes[f"{kind}: {type(error).__name__}"] += 1

    async def watch() -> None:
        start = time.perf_counter()
        while time.perf_counter() < end:
            seen.memory.append((time.perf_counter() - start, (await metrics(address))["llava_resident_bytes"] / 1e6))
            await asyncio.sleep(seconds / 10)

    await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    return seen


def percentiles(values: list[float]) -> str:
    """The 50th, 90th and 99th, in milliseconds."""
    if not values:
        return "none"
    ordered = sorted(values)
    return " / ".join(f"{1000 * ordered[int(len(ordered) * part)]:.0f}" for part in (0.5, 0.9, 0.99))


def run_load(clients: int, seconds: float) -> None:
    """Print what a load did; exit with 1 where something was lost."""
    with server("--max-requests", str(2 * clients)) as address:
        start = time.perf_counter()
        seen = asyncio.run(load(address, clients, seconds))
        took = time.perf_counter() - start
        after = asyncio.run(metrics(address))
    print(f"{clients} clients, {took:.0f} s: {dict(sorted(seen.outcomes.items()))}")
    print(f"time to first token (ms, 50 / 90 / 99%): {percentiles(seen.first)}")
    print(f"between tokens (ms, 50 / 90 / 99%): {percentiles(seen.between)}")
    print(f"{seen.tokens / took:.0f} tokens/s")
    print("memory: " + ", ".join(f"{mb:.0f} MB after {at:.0f} s" for at, mb in seen.memory))
    waiting, running, blocks = (after[f"llava_{name}"] for name in ("waiting", "running", "blocks"))
    print(f"afterwards: {waiting:.0f} waiting, {running:.0f} running, {blocks:.0f} blocks in use")
    lost = [name for name in seen.outcomes if name not in ("good", "leaves", "slow", "refused")]
    sys.exit(1 if lost or waiting or running or blocks else 0)


def run_throughput(requests: int, at_once: int) -> None:
    """Print tokens/s through HTTP and through the engine."""
    bodies = [{"prompt": beginning(i), "max_tokens": 32, "stream": True} for i in range(requests)]
    with server() as address:
        http = [asyncio.run(_through_http(address, bodies, at_once)) for _ in range(2)][-1]
    command = [sys.executable, __file__, "engine", "--requests", str(requests), "--clients", str(at_once)]
    engine = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"through HTTP {http:.0f} tokens/s, through the engine {engine:.0f} tokens/s: {http / engine:.2f}")


async def _through_http(address: tuple[str, int], bodies: list[dict[str, Any]], at_once: int) -> float:
    seen, places = Seen(), asyncio.Semaphore(at_once)

    async def one(body: dict[str, Any]) -> None:
        async with places:
            await ask(address, body, "good", seen)

    start = time.perf_counter()
    before = (await metrics(address)).get("llava_answer_tokens_total", 0)
    await asyncio.gather(*map(one, bodies))
    assert seen.outcomes["good"] == len(bodies), seen.outcomes
    return ((await metrics(address))["llava_answer_tokens_total"] - before) / (time.perf_counter() - start)


def run_engine(requests: int, at_once: int) -> None:
    """The same requests without HTTP: a new one is submitted when one ends."""
    import llava
    from llava.engine.engine import Engine
    from llava.engine.request import Generation
    from llava.engine.sampling import Sampling

    assistant = llava.load("llava-smol")
    speed = 0.0
    engine = Engine(assistant.model, assistant.processor.tokenizer)
    for _ in range(2):  # the first fills caches, as above
        running: list[Generation] = []
        submitted = tokens = 0
        start = time.perf_counter()
        while submitted < requests or running:
            while submitted < requests and len(running) < at_once:
                running.append(engine.submit(assistant.continuation(beginning(submitted)), Sampling(32)))
                submitted += 1
            engine.step()
            tokens += sum(len(one.output) for one in running if one.finished)
            running = [one for one in running if not one.finished]
        speed = tokens / (time.perf_counter() - start)
    print(speed)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "throughput", "engine"])
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    if options.what == "load":
        run_load(options.clients or 200, options.seconds)
    elif options.what == "throughput":
        run_throughput(options.requests, options.clients or 16)
    else:
        run_engine(options.requests, options.clients or 16)


if __name__ == "__main__":
    main()
