"""`llava models`: what can be loaded by name, and what fits this machine."""

HELP = """List the embedded and published models, their size, and whether they fit this machine's memory.

Example:

    llava models
"""


def run() -> None:
    """See HELP."""
    from rich.console import Console
    from rich.table import Table

    from llava.config import LlavaConfig, Storage, load_config
    from llava.memory import total_memory
    from llava.quantization.footprint import PRECISIONS, footprint, peak_bytes
    from llava.registry import EMBEDDED, PUBLISHED

    memory = total_memory()

    def sizes(config: LlavaConfig) -> list[str]:
        """Parameters, and the memory for each precision; green where it fits, red where it does not."""
        count = sum(part.parameters for part in footprint(config, Storage("float32")).values())
        cells = [f"{count / 1e9:.1f} B"]
        for precision in PRECISIONS:
            need = peak_bytes(config, Storage(precision))
            fits = need < memory
            cells.append(f"[{'green' if fits else 'red'}]{need / 1e9:.1f} GB{'' if fits else ' ✗'}[/]")
        return cells

    table = Table(caption=f"peak memory of loading; ✗: more than this machine's {memory / 1e9:.0f} GB")
    for column in ("name", "layout", "LLM", "template"):
        table.add_column(column, no_wrap=True)
    for column in ("parameters", *PRECISIONS):
        table.add_column(column, justify="right", no_wrap=True)
    for name, folder in EMBEDDED.items():
        config = load_config(folder / "config.json")
        table.add_row(name, "embedded", "SmolLM2 135M", config.template, *sizes(config))
    for model in PUBLISHED.values():
        layout = f"{model.layout} {model.generation}"
        table.add_row(model.id, layout, model.llm, model.template, *sizes(model.shape()))
    console = Console()
    (console if console.is_terminal else Console(width=190)).print(table)
