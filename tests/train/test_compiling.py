"""Compiled blocks train as plain ones do."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from llava.errors import LlavaError
from llava.train.loop import train
from llava.train.recipe import Recipe
from tests.train.helpers import Watcher, recipe_values, write_base, write_data

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch.compile itself gives cause to


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_losses_and_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    write_base(tmp_path)
    write_data(tmp_path)

    def run(output: str, compiled: bool, stop_after: int | None = None) -> Watcher:
        values = recipe_values(tmp_path, stage="finetune", output=str(tmp_path / output), compile=compiled)
        watcher = Watcher(stop_after)
        train(Recipe.model_validate(values | {"lora": {"rank": 2, "alpha": 4}}), watcher)
        return watcher

    plain, compiled = run("plain", False), run("compiled", True)
    assert len(compiled.logs) == 6
    for one, other in zip(plain.logs, compiled.logs, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-5) and other.grad_norm == pytest.approx(
            one.grad_norm, rel=1e-3
        )
    with pytest.raises(KeyboardInterrupt):
        run("interrupted", True, stop_after=4)
    assert [log.loss for log in run("interrupted", True).logs] == [log.loss for log in compiled.logs[2:]]


def test_without_a_compiler_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(tmp_path)
    write_data(tmp_path)
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(LlavaError, match=r"compile: torch.compile does not work here \(.*compiler.*\); install"):
        train(Recipe.model_validate(recipe_values(tmp_path, compile=True)), Watcher())
