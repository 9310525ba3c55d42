"""`llava models`: what can be loaded by name, and what fits this machine."""

import os

from llava.errors import LlavaError

HELP = """List the embedded and published models, their size, and whether they fit this machine's memory.

Example:

    llava models
"""
_BYTES = 4  # a parameter, in float32


def run() -> None:
    """See HELP."""
    from rich.console import Console
    from rich.table import Table

    from llava.registry import EMBEDDED, PUBLISHED

    memory = _memory()
    table = Table(caption=f"memory in float32; this machine has {memory / 1e9:.0f} GB")
    for column in ("name", "layout", "LLM", "template", "parameters", "memory", "fits"):
        numeric = column in ("parameters", "memory")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for name in EMBEDDED:
        table.add_row(name, "embedded", "SmolLM2 135M", "chatml", "0.14 B", "0.6 GB", "yes")
    for model in PUBLISHED.values():
        need = model.billions * 1e9 * _BYTES
        size = (f"{model.billions:.1f} B", f"{need / 1e9:.0f} GB", "yes" if need < memory else "no")
        table.add_row(model.id, f"{model.layout} {model.generation}", model.llm, model.template, *size)
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def _memory() -> int:
    """Bytes of this machine's memory, or of its GPU's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        raise LlavaError("this platform does not tell how much memory it has") from None
