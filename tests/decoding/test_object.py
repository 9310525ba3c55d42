"""Object files of the large code model, written by LLVM here, and run."""

import ctypes
from functools import cache
from pathlib import Path

import pytest

from llava.decoding import build
from llava.decoding.object import load_object

SOURCE = """
@table = internal constant [4 x i64] [i64 10, i64 20, i64 30, i64 40]
@shared = common global i64 0
@places = internal constant [2 x ptr] [ptr @table, ptr @shared]
declare i64 @outside(i64)
define internal i64 @inner(i64 %i) noinline {
  %at = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %value = load i64, ptr %at
  ret i64 %value
}
define i64 @main(i64 %i) {
  %one = call i64 @inner(i64 %i)
  %two = call i64 @outside(i64 %one)
  ret i64 %two
}
define ptr @common_address() {
  ret ptr @shared
}
define ptr @place(i64 %i) {
  %at = getelementptr [2 x ptr], ptr @places, i64 0, i64 %i
  %value = load ptr, ptr %at
  ret ptr %value
}
"""


@cache
def object_file() -> bytes:
    llvm = pytest.importorskip("llvmlite.binding")
    if not build.possible():
        pytest.skip("machine code is loaded on x86-64 and Linux only")
    content: bytes = build._machine().emit_object(llvm.parse_assembly(SOURCE))
    return content


def test_code_calls_itself_and_what_lies_outside_and_reads_constants() -> None:
    number = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    asked = []

    def outside(value: int) -> int:
        asked.append(value)
        return value + 1

    callback = number(outside)
    code = load_object(object_file(), lambda name: {"outside": ctypes.cast(callback, ctypes.c_void_p).value or 0}[name])
    main = number(code.symbols["main"])
    assert [main(i) for i in range(4)] == [11, 21, 31, 41] and asked == [10, 20, 30, 40]
    common = ctypes.CFUNCTYPE(ctypes.c_void_p)(code.symbols["common_address"])()
    place = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64)(code.symbols["place"])
    assert common and place(1) == common and ctypes.c_int64.from_address(place(0) + 8).value == 20


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "machine"])
def test_a_damaged_file_is_an_error(damage: str) -> None:
    content = object_file()
    broken = {
        "empty": b"",
        "text": b"not an object file" * 10,
        "cut": content[: len(content) // 2],
        "machine": content[:18] + b"\xb7\x00" + content[20:],
    }[damage]
    with pytest.raises(ValueError, match="object file"):
        load_object(broken, lambda name: 0)


def test_an_unknown_name_is_not_taken_for_an_address() -> None:
    with pytest.raises(KeyError):
        load_object(object_file(), lambda name: {}[name])


def test_functions_that_cannot_be_built_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not build.possible():
        pytest.skip("nothing is built here")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "_path", lambda: tmp_path / "file" / "step.o")  # no folder that one could write to
    build.wait()
    assert build.function("step") is None and build.function("linear") is None
    assert [record.message for record in caplog.records if "cannot be built" in record.message] == [
        caplog.records[-1].message
    ]
