"""Which of several ways is the fastest on this machine: measured once, and remembered in the cache folder.

`kernels.json` has the choices for each kind of processor, release of PyTorch and number of threads. Deleting the file
measures anew.
"""

import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from llava.errors import LlavaError
from llava.files import cache_dir, write_text

_TURNS = 3  # of all ways: whatever else the machine did for a moment does not decide
# Threads that pack layers do not measure against each other. Measuring a layer may have to choose a library first.
_ALONE = threading.RLock()


def fastest(entry: str, seconds: Mapping[str, Callable[[], float]]) -> str:
    """The name of the way that takes least, as remembered under `entry`, or measured now by the functions given."""
    with _ALONE:
        return _fastest(entry, seconds)


def _fastest(entry: str, seconds: Mapping[str, Callable[[], float]]) -> str:
    path, machine = cache_dir() / "kernels.json", _machine()
    known = _remembered(path)
    chosen = known.get(machine, {}).get(entry)
    if chosen is None or chosen not in seconds:
        with torch.inference_mode():
            turns = [{name: measured() for name, measured in seconds.items()} for _ in range(_TURNS)]
            costs = {name: min(turn[name] for turn in turns) for name in seconds}
        chosen = min(costs, key=costs.__getitem__)
        known = _remembered(path)  # again: a way that was measured may have chosen something itself
        known.setdefault(machine, {})[entry] = chosen
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(known, indent=2) + "\n")
        except (LlavaError, OSError):
            pass  # without a cache folder it is measured each time
    return chosen


def least(run: Callable[[], object], rounds: int) -> float:
    """The seconds that it takes, at best."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _remembered(path: Path) -> dict[str, dict[str, str]]:
    """Choices by machine and entry; none where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(machine): dict(names) for machine, names in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _machine() -> str:
    """What decides which kernel is the fastest."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    level = torch.backends.cpu.get_cpu_capability()
    return f"{processor}, {level}, {torch.get_num_threads()} threads, torch {torch.__version__}"
