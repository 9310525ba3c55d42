"""How much memory there is."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import LlavaError

if TYPE_CHECKING:
    import torch


def total_memory() -> int:
    """Bytes of this machine's memory, or of its GPU's. Raises LlavaError where the platform does not tell."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        raise LlavaError("this platform does not tell how much memory it has") from None


def available_memory(device: "torch.device") -> int:
    """Bytes that are free on a device; where the platform does not tell, half of what it has, or 8 GB."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return total_memory() // 2
    except LlavaError:
        return 8 * 10**9
