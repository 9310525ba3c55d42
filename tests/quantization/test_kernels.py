"""The choice of kernels: measured once, remembered, measured again where what is remembered does not fit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from llava import measure
from llava.quantization import kernels, linears


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What was measured, in an empty cache folder; the second candidate of each precision is the fastest."""
    names: list[str] = []

    def seconds(layer: nn.Module, decoded: int = 64) -> float:
        names.append(type(layer).__name__)
        return -len(names)

    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_seconds", seconds)
    kernels._fastest.cache_clear()
    yield names
    kernels._fastest.cache_clear()


def test_a_choice_is_measured_once_and_remembered(measured: list[str], tmp_path: Path) -> None:
    turns = measure._TURNS
    assert kernels._fastest("float32") == "plain" and measured == turns * ["Float32Linear", "PlainLinear"]
    kernels._fastest.cache_clear()  # as another process
    assert kernels._fastest("float32") == "plain" and len(measured) == turns * 2
    assert kernels._fastest("int8") == "int8pack" and len(measured) == turns * 4
    assert kernels._fastest("int8", plain=True) == "fbgemm"
    assert measured[turns * 4 :] == turns * ["Plain8Linear", "Int8Linear"]
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert list(found.values()) == [{"float32": "plain", "int8": "int8pack", "int8, compiled": "fbgemm"}]


@pytest.mark.parametrize("text", ["not json", "[]", '{"a": 3}', '{"MACHINE": {"float32": "gone"}}'])
def test_what_is_remembered_and_does_not_fit_is_measured_again(measured: list[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "kernels.json").write_text(text.replace("MACHINE", measure._machine()))
    assert kernels._fastest("float32") == "plain" and len(measured) == 2 * measure._TURNS


def test_without_a_cache_folder_it_is_measured(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "file"))
    assert kernels._fastest("float32") == "plain" and len(measured) == 2 * measure._TURNS


def test_a_layer_that_chooses_a_library_itself_is_measured_in_an_empty_cache_folder(tmp_path: Path) -> None:
    """In a process of its own, where nothing was chosen yet: it once waited for itself."""
    program = "from llava.quantization.kernels import _fastest; print(_fastest('float32'))"
    environment = {**os.environ, "LLAVA_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout.strip() in kernels._WHOLE_KERNELS
    (choices,) = json.loads((tmp_path / "kernels.json").read_text()).values()
    assert sorted(choices) == ["float32", "plain product"]  # what the layer chose is remembered too


def test_a_real_measurement_takes_a_moment() -> None:
    layer = kernels._candidates("int8")["int8pack"]()
    assert 0 < kernels._seconds(layer) < 60


@pytest.mark.parametrize("faster", ["mkl", "onednn"])
def test_prompts_are_read_by_the_library_that_is_measured_to_be_faster(
    faster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path))
    ways = {"mkl": linears._mkl, "onednn": linears._onednn}
    monkeypatch.setattr(linears, "_seconds", lambda way, x, weight: 1.0 if way is ways[faster] else 2.0)
    linears._product.cache_clear()
    try:
        assert linears._product() is ways[faster]
        linears._product.cache_clear()  # as another process
        monkeypatch.setattr(linears, "_seconds", lambda way, x, weight: 3.0)
        assert linears._product() is ways[faster]
    finally:
        linears._product.cache_clear()


@pytest.mark.parametrize("shape", [(7, 48), (2, 3, 48), (0, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_both_libraries_give_the_same_product(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(32, 48, generator=generator)
    added = torch.randn(32, generator=generator) if bias else None
    with torch.inference_mode():
        one, other = (way(x, weight, added) for way in (linears._mkl, linears._onednn))
    assert one.shape == other.shape == (*shape[:-1], 32)
    assert torch.allclose(one, other, atol=1e-5)  # sums of 48 products in another order
