"""Peak memory of loading a model and of answering about a picture, in each precision, against what is predicted.

    python scripts/random_model.py /tmp/random-2gb --layers 2
    python benchmarks/memory.py /tmp/random-2gb --precision float32 float16 int8 int4

Each precision runs in a process of its own. `peak` is the most that the process ever held (ru_maxrss), Python and
PyTorch among it; `predicted` is what `llava inspect` says.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL.Image

MEGABYTE = 1e6
QUESTION = "What is shown in this image?"


def measure(model: str, precision: str, tokens: int) -> list[str]:
    """Load, and answer one question about a picture."""
    import llava
    from llava.checkpoints.adapters import adapter_parameters
    from llava.checkpoints.native import ADAPTER
    from llava.config import Storage
    from llava.engine.sampling import Sampling
    from llava.quantization.footprint import peak_bytes
    from llava.registry import model_folder

    start = time.perf_counter()
    assistant = llava.load(model, device="cpu", precision=precision)  # type: ignore[arg-type]
    loading, loaded = time.perf_counter() - start, peak()
    picture = llava.Image(PIL.Image.radial_gradient("L").resize((640, 480)).convert("RGB"))
    request = replace(assistant.request([llava.Message.user(picture, QUESTION)]), stop_ids=frozenset())
    start = time.perf_counter()
    times = [time.perf_counter() - start for _ in assistant._engine.stream(request, Sampling(tokens, lookup=False))]
    adapter = model_folder(model) / ADAPTER
    lora = adapter_parameters(adapter) if adapter.exists() else 0
    predicted = peak_bytes(assistant.model.config, Storage(precision), lora)  # type: ignore[arg-type]
    figures = [predicted / MEGABYTE, loaded, peak(), loading, times[0], (tokens - 1) / (times[-1] - times[0])]
    return [precision, *(f"{figure:.0f}" for figure in figures[:3]), *(f"{figure:.1f}" for figure in figures[3:])]


def peak() -> float:
    """The most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MEGABYTE


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a folder")
    parser.add_argument("--precision", nargs="+", default=["float16", "int8", "int4"], metavar="P")
    parser.add_argument("--tokens", type=int, default=8, help="of the answer (default 8)")
    options = parser.parse_args()
    size = sum(file.stat().st_size for file in Path(options.model).glob("*.safetensors"))
    if size:
        print(f"{options.model}: {size / MEGABYTE:.0f} MB of weights\n")
    columns = ["precision", "predicted (MB)", "peak loading (MB)", "peak answering (MB)"]
    columns += ["loading (s)", "first token (s)", "tokens/s"]
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for precision in options.precision:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            row = process.submit(measure, options.model, precision, options.tokens).result()
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
