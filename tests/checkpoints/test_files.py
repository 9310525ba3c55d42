import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llava import LlavaError
from llava.checkpoints.files import load_strict, read_safetensors, read_torch, write_safetensors


class Malicious:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def tensors() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])}


def test_safetensors_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    given = {**tensors(), "turned": tensors()["weight"].T, "half": torch.ones(2, dtype=torch.bfloat16)}
    write_safetensors(path, given)
    found = read_safetensors(path)
    assert found.keys() == given.keys()
    assert all(found[name].dtype == given[name].dtype and torch.equal(found[name], given[name]) for name in given)


def test_truncated_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors())
    data = path.read_bytes()
    for length in (0, 4, 20, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(LlavaError, match=r"a\.safetensors: damaged or truncated safetensors file"):
            read_safetensors(path)


@pytest.mark.parametrize("read", [read_safetensors, read_torch])
def test_a_missing_file_is_told(tmp_path: Path, read: Callable[[Path], dict[str, Tensor]]) -> None:
    with pytest.raises(LlavaError, match="none: weight file not found"):
        read(tmp_path / "none")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_torch_comes_back(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    found = read_torch(path)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("read", [read_safetensors, read_torch])
def test_random_bytes_are_refused_on_one_line(tmp_path: Path, read: Callable[[Path], dict[str, Tensor]]) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "a"
    for size in (0, 1, 10, *[50] * 200, *[500] * 100):
        path.write_bytes(rng.bytes(size))
        with pytest.raises(LlavaError, match="damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_pickle_that_ends_inside_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x80\x02X\x01")  # the unpickler raises struct.error
    with pytest.raises(LlavaError, match="damaged"):
        read_torch(tmp_path / "a")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_state_dict_raises_nothing_but_llava_error(tmp_path: Path, zipped: bool) -> None:
    rng, path, refused = np.random.default_rng(0), tmp_path / "a.pth", 0
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(200):
        damaged = data.copy()
        damaged[rng.integers(0, len(data), 10)] = rng.integers(0, 256, 10)
        path.write_bytes(damaged[: rng.integers(len(data) // 2, len(data) + 1)].tobytes())
        try:
            read_torch(path)
        except LlavaError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "a.pth", tmp_path / "run"
    content = {"weight": Malicious(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(LlavaError, match="damaged, or not a plain file of tensors"):
        read_torch(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file is malicious indeed


@pytest.mark.parametrize("content", [[torch.ones(1)], {"weight": 1.0}, torch.ones(1)])
def test_anything_but_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(LlavaError, match="expected a state dict"):
        read_torch(tmp_path / "a.pth")


def test_writing_where_a_folder_stands_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(LlavaError, match="cannot write"):
        write_safetensors(tmp_path / "a", tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_strict_loading_gives_float32_to_a_module_on_meta() -> None:
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    load_strict(module, {name: tensor.bfloat16() for name, tensor in tensors().items()}, Path("a"))
    assert all(parameter.dtype == torch.float32 and not parameter.is_meta for parameter in module.parameters())
    assert torch.equal(module.weight, tensors()["weight"])


def test_strict_loading_keeps_integers() -> None:
    norm = nn.BatchNorm1d(2)
    load_strict(norm, {**norm.state_dict(), "num_batches_tracked": torch.tensor(2**40 + 1)}, Path("a"))
    assert norm.num_batches_tracked.item() == 2**40 + 1  # float32 would round it


def test_strict_loading_lists_missing_unexpected_and_misshaped() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    given = {
        "0.weight": torch.ones(2, 4),
        "0.bias": torch.ones(2),
        "1.weight": torch.ones(2, 2),
        "other": torch.ones(1),
    }
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(LlavaError) as caught:
        load_strict(module, given, Path("a.pth"))
    assert str(caught.value) == (
        "a.pth: the weights do not fit Sequential: 1 missing: 1.bias; 1 unexpected: other; "
        "1 of another shape: 0.weight (2, 4), expected (2, 3)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
