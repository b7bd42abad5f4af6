"""What the launch wrapper refuses, and how it finds, compiles and remembers kernels."""

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.gpu import require_cupy, require_gpu

from cupygpt.errors import DeviceError, KernelError
from cupygpt.kernels import kernel as kernels
from cupygpt.kernels import load
from cupygpt.kernels.kernel import Kernel, forget_compiled
from cupygpt.kernels.launch import Launch
from cupygpt.kernels.load import precompile, record_kernels, register_loader


class FakeArray(np.ndarray):
    """Arrays of a device that only remembers its launches."""


class FakeFunction:
    max_dynamic_shared_size_bytes = 0
    shared_size_bytes = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        self.launches.append((grid, block, args, shared_mem))


class FakeDevice:
    """A loader whose modules hold one function, under any name."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, tuple[str, ...]]] = []
        self.function = FakeFunction("")

    def __call__(self, path: Path, options: tuple[str, ...]) -> "FakeDevice":
        self.loads.append((path.name, options))
        return self

    def get_function(self, name: str) -> FakeFunction:
        self.function.name = name
        return self.function

    @property
    def last(self) -> tuple[Any, ...]:
        return self.function.launches[-1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """A device for FakeArray; kernels declared in the test are forgotten after it."""
    monkeypatch.setattr(kernels, "_kernels", [])
    monkeypatch.setattr(load, "_modules", {})
    monkeypatch.setattr(load, "_loaders", {})
    device = FakeDevice()
    register_loader(FakeArray, device)
    return device


def array(shape: Any, dtype: str = "float32") -> FakeArray:
    return np.zeros(shape, dtype).view(FakeArray)


def scale_kernel() -> Kernel:
    return Kernel("gelu.cu", "scale", "out:floatX* inp:floatX*? n:i32 factor:f32 seed:u64")


def launch(*args: Any, grid: Any = 2, **defines: int) -> None:
    scale_kernel()(*args, launch=Launch(grid, 32, defines=defines))


def test_scalars_get_the_declared_types(fake: FakeDevice) -> None:
    out = array(8)
    launch(out, out, 7, 1, 2**63)
    grid, block, args, shared_mem = fake.last
    assert (grid, block, shared_mem) == ((2, 1, 1), (32, 1, 1), 0)
    assert [type(a) for a in args[2:]] == [np.int32, np.float32, np.uint64]
    assert [a.item() for a in args[2:]] == [7, 1.0, 2**63]
    assert args[0] is out


def test_numpy_scalars_are_numbers(fake: FakeDevice) -> None:
    launch(array(8), None, np.int64(7), np.float64(0.5), np.uint8(1))
    assert [a.item() for a in fake.last[2][2:]] == [7, 0.5, 1]


def test_none_is_a_null_pointer(fake: FakeDevice) -> None:
    launch(array(8), None, 1, 1.0, 1)
    null = fake.last[2][1]
    assert isinstance(null, np.uint64)
    assert null == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((array(8), array(8), 1, 1.0), "takes 5 arguments, 4 were given"),
        ((None, array(8), 1, 1.0, 1), "'out' is None"),
        ((3.0, array(8), 1, 1.0, 1), "'out' is a float, not an array"),
        ((array(8, "float64"), array(8), 1, 1.0, 1), "'out' is float64; floatX is float32"),
        ((array(8), array(8, "uint16"), 1, 1.0, 1), "'inp' is uint16, another floatX array"),
        ((array((4, 4)).T, None, 1, 1.0, 1), "'out' of shape (4, 4) is not C-contiguous"),
        ((array(8), np.zeros(8, np.float32), 1, 1.0, 1), "'inp' is a ndarray on"),
        ((array(8), None, 2**31, 1.0, 1), "'n' is 2147483648, which no int32 holds"),
        ((array(8), None, -(2**31) - 1, 1.0, 1), "which no int32 holds"),
        ((array(8), None, 1, 1.0, -1), "'seed' is -1, which no uint64 holds"),
        ((array(8), None, 1.0, 1.0, 1), "'n' is a float, not an integer"),
        ((array(8), None, True, 1.0, 1), "'n' is a bool, not an integer"),
        ((array(8), None, 1, "1", 1), "'factor' is a str, not a number"),
    ],
)
def test_wrong_arguments_are_refused(fake: FakeDevice, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        launch(*args)
    assert not fake.function.launches


def test_like_chooses_floatX_and_is_checked(fake: FakeDevice) -> None:
    kernel = Kernel("gelu.cu", "count", "out:i32*")
    out, chosen = array(1, "int32"), {}
    for like in (None, array(1), array(1, "uint16")):
        kernel(out, launch=Launch(1, 1), like=like)
        chosen[like is not None and like.dtype.name] = fake.loads[-1][1]
    assert "-DfloatX=float" in chosen[False]
    assert "-DfloatX=float" in chosen["float32"]
    assert "-DfloatX=__nv_bfloat16" in chosen["uint16"]
    with pytest.raises(KernelError, match="count: `like` is float64; floatX is float32 or"):
        kernel(out, launch=Launch(1, 1), like=array(1, "float64"))


def test_declared_dtype_is_checked(fake: FakeDevice) -> None:
    kernel = Kernel("gelu.cu", "count", "out:i32*")
    with pytest.raises(KernelError, match="'out' is int64, not int32"):
        kernel(array(1, "int64"), launch=Launch(1, 1))


PAIR = np.dtype([("low", np.int64), ("high", np.int32)], align=True)


def struct_kernel() -> Kernel:
    return Kernel("gelu.cu", "count", "out:i32* pair:Pair", structs={"Pair": PAIR})


def test_a_struct_is_passed_as_its_bytes(fake: FakeDevice) -> None:
    pair = np.array((7, 8), PAIR)
    struct_kernel()(array(1, "int32"), pair, launch=Launch(1, 1))
    passed = fake.last[2][1]
    assert type(passed) is np.ndarray  # CuPy passes arrays of size one by value
    assert (passed.shape, passed.nbytes) == ((), 16)
    assert passed.tobytes() == pair.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        (7, 8),
        np.array([(7, 8)], PAIR),
        np.array((7, 8), PAIR)[()],
        np.array((7, 8), [("low", np.int64), ("high", np.int64)]),
    ],
    ids=["a tuple", "one-dimensional", "a scalar", "of another dtype"],
)
def test_what_is_not_that_struct_is_refused(fake: FakeDevice, value: Any) -> None:
    with pytest.raises(KernelError, match=r"'pair' is a \w+, not a 0-d NumPy array"):
        struct_kernel()(array(1, "int32"), value, launch=Launch(1, 1))
    assert not fake.function.launches


@pytest.mark.parametrize("grid", [0, (0, 3), (3, 0)])
def test_an_empty_grid_runs_nothing(fake: FakeDevice, grid: Any) -> None:
    launch(array(0), None, 0, 1.0, 0, grid=grid)
    assert not fake.loads


def test_arguments_of_an_empty_grid_are_checked(fake: FakeDevice) -> None:
    with pytest.raises(KernelError, match="is a float, not an integer"):
        launch(array(0), None, 0.5, 1.0, 0, grid=0)


def test_floatX_follows_the_arrays(fake: FakeDevice) -> None:
    kernel = scale_kernel()
    for dtype in ("float32", "uint16", "float32"):
        kernel(array(8, dtype), None, 1, 1.0, 1, launch=Launch(1, 1))
    variants = [next(o for o in options if "floatX" in o) for _, options in fake.loads]
    assert variants == ["-DfloatX=float", "-DfloatX=__nv_bfloat16"]


def test_a_kernel_without_floatX_follows_like(fake: FakeDevice) -> None:
    kernel = Kernel("gelu.cu", "finish", "out:f32*")
    kernel(array(8), launch=Launch(1, 1), like=array(8, "uint16"))
    kernel(array(8), launch=Launch(1, 1))
    assert "-DfloatX=__nv_bfloat16" in fake.loads[0][1]
    assert "-DfloatX=float" in fake.loads[1][1]


def test_each_set_of_defines_is_compiled_once(fake: FakeDevice) -> None:
    kernel = scale_kernel()
    for defines in ({"HS": 64}, {"HS": 32}, {"HS": 64}, {}):
        kernel(array(8), None, 1, 1.0, 1, launch=Launch(1, 1, defines=defines))
    heads = [[o for o in options if o.startswith("-DHS")] for _, options in fake.loads]
    assert heads == [["-DHS=64"], ["-DHS=32"], []]


def test_kernels_of_a_file_share_its_module(fake: FakeDevice) -> None:
    for _ in range(2):
        launch(array(8), None, 1, 1.0, 1)
    assert len(fake.loads) == 1


def test_shared_memory_above_the_default_is_asked_for(fake: FakeDevice) -> None:
    kernel = scale_kernel()
    asked = []
    for shared_mem in (48 << 10, 60 << 10, 50 << 10, 64 << 10):
        kernel(array(8), None, 1, 1.0, 1, launch=Launch(1, 1, shared_bytes=shared_mem))
        asked.append(fake.function.max_dynamic_shared_size_bytes >> 10)
    assert asked == [0, 60, 60, 64]
    assert fake.last[3] == 64 << 10


def test_static_shared_memory_counts_too(fake: FakeDevice) -> None:
    fake.function.shared_size_bytes = 1 << 10
    kernel = scale_kernel()
    for shared_mem, allowed in ((47 << 10, 0), (48 << 10, 48 << 10)):
        kernel(array(8), None, 1, 1.0, 1, launch=Launch(1, 1, shared_bytes=shared_mem))
        assert fake.function.max_dynamic_shared_size_bytes == allowed


def test_forget_compiled_loads_again(fake: FakeDevice) -> None:
    kernel = scale_kernel()
    for _ in range(2):
        kernel(array(8), None, 1, 1.0, 1, launch=Launch(1, 1))
        forget_compiled()
    assert len(fake.loads) == 2


@pytest.mark.usefixtures("fake")
def test_arrays_that_no_kernel_takes() -> None:
    plain = np.zeros(8, np.float32)
    with pytest.raises(KernelError, match="do not run on arrays of type ndarray"):
        Kernel("gelu.cu", "gelu_forward", "out:floatX*")(plain, launch=Launch(1, 1))


def test_a_file_that_does_not_exist(fake: FakeDevice) -> None:
    with pytest.raises(KernelError, match=r"no_such\.cu: no such file"):
        Kernel("no_such.cu", "f", "out:floatX*")(array(8), launch=Launch(1, 1))


def test_recording_launches_nothing(fake: FakeDevice) -> None:
    def step() -> None:
        for HS in (64, 80, 64):
            launch(array(8, "uint16"), None, 1, 1.0, 1, HS=HS)
        launch(array(8), None, 1, 1.0, 1)

    recorded = record_kernels(step)
    assert [(v.file, v.floatX, v.constants) for v in recorded] == [
        ("gelu.cu", "__nv_bfloat16", (("HS", 64),)),
        ("gelu.cu", "__nv_bfloat16", (("HS", 80),)),
        ("gelu.cu", "float", ()),
    ]
    assert all(kernels == {"scale"} for kernels in recorded.values())
    assert not fake.loads
    assert not fake.function.launches


def test_kernels_are_launched_again_after_a_recording_that_failed(fake: FakeDevice) -> None:
    with pytest.raises(KernelError):
        record_kernels(lambda: launch(None, None, 1, 1.0, 1))
    launch(array(8), None, 1, 1.0, 1)
    assert len(fake.function.launches) == 1


def test_other_threads_launch_while_one_records(fake: FakeDevice) -> None:
    def dry_run() -> None:
        thread = threading.Thread(target=launch, args=(array(8), None, 1, 1.0, 1))
        thread.start()
        thread.join()

    assert not record_kernels(dry_run)
    assert len(fake.function.launches) == 1


def test_precompile_loads_what_was_recorded(fake: FakeDevice) -> None:
    def step() -> None:
        launch(array(8), None, 1, 1.0, 1)
        launch(array(8, "uint16"), None, 1, 1.0, 1)

    reports: list[tuple[int, int]] = []
    precompile(record_kernels(step), progress=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 2), (2, 2)]
    assert len(fake.loads) == 2
    launch(array(8), None, 1, 1.0, 1)
    assert len(fake.loads) == 2


def test_precompile_raises_what_a_file_raises(fake: FakeDevice) -> None:
    kernel = Kernel("no_such.cu", "f", "out:floatX*")
    recorded = record_kernels(lambda: kernel(array(8), launch=Launch(1, 1)))
    with pytest.raises(KernelError, match="no such file"):
        precompile(recorded)


def test_options_follow_the_headers(tmp_path: Path) -> None:
    header = tmp_path / "lib" / "packs.cuh"
    header.parent.mkdir()
    seen = set()
    for text in ("// one", "// two", "// one"):
        header.write_text(text)
        seen.add(load.compile_options(tmp_path, "float", {}))
    assert len(seen) == 2


def test_a_compile_error_says_where_and_how_to_get_headers() -> None:
    log = 'gelu.cu(3): catastrophic error: cannot open source file "cuda_bf16.h"'
    message = load._log_message(Path("cuda/gelu.cu"), log, ("-DfloatX=float",))
    assert message.startswith("gelu.cu does not compile (-DfloatX=float):")
    assert "gelu.cu(3)" in message
    assert "cupygpt[cuda12]" in message
    assert "cupygpt[" not in load._log_message(Path("gelu.cu"), "gelu.cu(3): error: x", ())


@pytest.mark.gpu
def test_a_file_that_does_not_compile_is_named_with_its_line(tmp_path: Path) -> None:
    require_gpu()
    path = tmp_path / "broken.cu"
    path.write_text('extern "C" __global__ void f() {\n    undefined_name;\n}\n')
    with pytest.raises(KernelError, match=r"(?s)broken\.cu does not compile.*broken\.cu\(2\)"):
        load.load_cupy_module(path, ("-std=c++17",))


@pytest.mark.gpu
def test_a_struct_arrives_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = require_cupy()
    (tmp_path / "unpack.cu").write_text(
        "struct Pair { long long low; int high; };\n"
        'extern "C" __global__ void unpack(long long* out, int before, Pair pair, int after) {\n'
        "    out[0] = before, out[1] = pair.low, out[2] = pair.high, out[3] = after;\n"
        "}\n"
    )
    monkeypatch.setattr(load, "find_cuda_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_kernels", [])
    kernel = Kernel(
        "unpack.cu", "unpack", "out:i64* before:i32 pair:Pair after:i32", structs={"Pair": PAIR}
    )
    out = cupy.zeros(4, "int64")
    kernel(out, 1, np.array((2**40, 3), PAIR), 4, launch=Launch(1, 1))
    assert out.tolist() == [1, 2**40, 3, 4]


@pytest.mark.gpu
def test_more_than_48_kib_of_shared_memory_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = require_cupy()
    (tmp_path / "last.cu").write_text(
        'extern "C" __global__ void last(float* out, int n) {\n'
        "    extern __shared__ float smem[];\n"
        "    for (int i = threadIdx.x; i < n; i += blockDim.x) smem[i] = i;\n"
        "    __syncthreads();\n"
        "    out[0] = smem[n - 1];\n"
        "}\n"
    )
    monkeypatch.setattr(load, "find_cuda_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_kernels", [])
    out, n = cupy.zeros(1, "float32"), 14 * 1024
    Kernel("last.cu", "last", "out:f32* n:i32")(out, n, launch=Launch(1, 32, shared_bytes=4 * n))
    assert float(out[0]) == n - 1


def test_a_cache_of_cupy_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may exist without being the user's: CuPy notices when the first kernel is kept."""

    class RawModule:
        def __init__(self, **_: Any) -> None:
            pass

        def compile(self) -> None:
            raise PermissionError(13, "Permission denied", "/home/other/.cupy/kernel_cache/tmp7")

    compiler = SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule))
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(compiler=compiler))
    monkeypatch.setitem(sys.modules, "cupy.cuda.compiler", compiler)
    monkeypatch.setattr(load, "_cuda_header_dirs", list)
    monkeypatch.setenv("CUPY_CACHE_DIR", "/home/other/.cupy/kernel_cache")
    source = tmp_path / "a.cu"
    source.write_text("")
    with pytest.raises(DeviceError, match=r"in /home/other/\.cupy/kernel_cache \(Permission den"):
        load.load_cupy_module(source, ())
