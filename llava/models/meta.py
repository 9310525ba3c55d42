"""Models without weights, which loading then gives them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLING = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)  # what PyTorch's layers begin with


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves new parameters as they are. On `meta` there is nothing to fill, but the attempt imports for a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = kwargs or {}
        if func in _FILLING:
            return values["tensor"]
        return func(*args, **values)


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules that are built here have shapes, but neither memory nor values."""
    with torch.device("meta"), _NoRandomNumbers():
        yield
