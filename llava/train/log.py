"""The log of a run: JSON lines, TensorBoard events, and the loss as a picture."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llava.errors import LlavaError
from llava.files import atomic_path, os_errors, write_text

LOG = "log.jsonl"  # in the output folder
_DRAW_EVERY = 10.0  # seconds at least


@dataclass(frozen=True)
class StepLog:
    """What one step did. loss: mean over the step's supervised tokens, or its pictures in stage match.

    tokens_per_second: with images and padding.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float


def require_log() -> None:
    """Raises LlavaError where the packages are missing that the log needs."""
    try:
        import matplotlib.figure  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise LlavaError("training needs TensorBoard and matplotlib: pip install 'llava[train]'") from None


class Log:
    """Appends steps to `log.jsonl` and `tensorboard/` under the output folder; `draw` writes `loss.png`."""

    def __init__(self, output: Path, start: int) -> None:
        """start: the step a resumed run goes on from; what an interrupted run logged after it is forgotten."""
        from torch.utils.tensorboard import SummaryWriter

        self._output = output
        self._path = output / LOG
        self._entries = [entry for entry in read_log(self._path) if entry.step <= start]
        write_text(self._path, "".join(json.dumps(asdict(entry)) + "\n" for entry in self._entries))
        self._file = self._path.open("a", encoding="utf-8")
        self._drawn = time.monotonic()
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)

    def add(self, entry: StepLog) -> None:
        """Log one step."""
        self._entries.append(entry)
        with os_errors(f"write {self._path}"):
            self._file.write(json.dumps(asdict(entry)) + "\n")
            self._file.flush()
            for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
                self._board.add_scalar(f"train/{name}", getattr(entry, name), entry.step)

    def draw(self) -> None:
        """Write the loss curve to `loss.png`, unless that was done within the last ten seconds."""
        if time.monotonic() - self._drawn > _DRAW_EVERY:
            draw_loss(self._entries, self._output / "loss.png")
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        with os_errors(f"write {self._path}"):
            try:
                self._board.close()
            finally:
                self._file.close()


def read_log(path: Path) -> list[StepLog]:
    """The steps in a `log.jsonl`; a last line cut short by an interruption is left out."""
    entries = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            entries.append(StepLog(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return entries


def draw_loss(entries: list[StepLog], path: Path, window: int = 20) -> None:
    """Plot the loss of each step and its running mean over `window` steps, on a logarithmic scale."""
    from matplotlib.figure import Figure

    steps, losses = [entry.step for entry in entries], [entry.loss for entry in entries]
    means = [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i - window + 1) : i + 1])]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(steps, means, color="tab:blue", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
