"""`llava models`: what can be loaded by name, and what fits this machine."""

HELP = """List the embedded and published models, their size, and whether they fit this machine's memory.

Example:

    llava models
"""
_BYTES = 4  # a parameter, in float32


def run() -> None:
    """See HELP."""
    from rich.console import Console
    from rich.table import Table

    from llava.memory import total_memory
    from llava.registry import EMBEDDED, PUBLISHED

    memory = total_memory()
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
