"""Rungs with planted mistakes, each with the verdict that it must get; and right kernels."""

from dataclasses import dataclass

from support.cache import cache_folder

from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import (
    ADAMW,
    ATTENTION_FORWARD,
    COLUMN_SUM,
    CROSS_ENTROPY,
    GELU_FORWARD,
    LAYERNORM_FORWARD,
    MATMUL,
    MATMUL_BF16,
)
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS


@dataclass(frozen=True)
class Planted:
    """A rung in which `old` became `new`; `place` is text of the line that the verdict names."""

    contract: Contract
    rung: str
    """ladder/number."""
    old: str
    new: str
    verdict: str
    place: str = ""

    def write(self) -> KernelFile:
        ladder, number = self.rung.split("/")
        source = LADDERS[ladder].rungs[int(number) - 1].path.read_text()
        assert source.count(self.old) == 1, (self.rung, self.old, source.count(self.old))
        return written(f"planted_{ladder}_{number}_{abs(hash_of(self)) % 10**8}",
                       source.replace(self.old, self.new))  # fmt: skip


def hash_of(planted: Planted) -> int:
    """The same in every process, unlike hash()."""
    return sum((i + 1) * ord(c) for i, c in enumerate(planted.old + "\0" + planted.new))


def written(name: str, source: str) -> KernelFile:
    """A file in a folder that stays: what is compiled for it is found again."""
    folder = cache_folder("lab") / "planted"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.cu"
    path.write_text(source)
    return KernelFile.read(path)


N_EDGE = "    if (n >= N) return;  // the same in all lanes\n"
MISTAKES = [
    # ---- it does not compile ----
    Planted(
        GELU_FORWARD,
        "gelu/2",
        "if (i >= N) return;",
        "if (i >= N return;",
        "does not compile: line ",
        "if (i >= N return;",
    ),
    Planted(
        GELU_FORWARD,
        "gelu/2",
        "from_float<floatX>(",
        "from_floats<floatX>(",
        "does not compile: line ",
        "from_floats",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/2",
        '#include "lib/reduce.cuh"',
        '#include "lib/reduction.cuh"',
        "does not compile: line ",
        "reduction",
    ),
    # ---- faults ----
    Planted(
        GELU_FORWARD,
        "gelu/3",
        "    if (i >= N) return;\n",
        "",
        "out of bounds in line ",
        "load_pack(inp + i)",
    ),
    Planted(
        GELU_FORWARD,
        "gelu/3",
        "global_thread() * PACK_SIZE",
        "global_thread()",
        "misaligned access in line ",
        "load_pack(inp + i)",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/2",
        N_EDGE,
        "",
        "out of bounds in line ",
        "sum += to_float(row[c])",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/1",
        "c < C; c++) sum",
        "c <= C; c++) sum",
        "out of bounds in line ",
        "sum += to_float(row[c])",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/3",
        "x[i] = c < C ? to_float(row[c]) : 0.0f;",
        "x[i] = to_float(row[c]);",
        "out of bounds in line ",
        "x[i] = to_float(row[c])",
    ),
    Planted(
        COLUMN_SUM,
        "column_sum/3",
        "atomicAdd(&dbias[column], sum);",
        "dbias[column] += sum;",
        "race in line ",
        "dbias[column] += sum;",
    ),
    Planted(
        COLUMN_SUM,
        "column_sum/2",
        "    if (column >= OC) return;\n",
        "",
        "out of bounds in line ",
        "sum += to_float",
    ),
    Planted(
        CROSS_ENTROPY,
        "cross_entropy/2",
        "    __syncthreads();  // all have read it before the next call writes\n",
        "",
        "race in line ",
        "result = shared[0]",
    ),
    Planted(
        CROSS_ENTROPY,
        "cross_entropy/2",
        "if (threadIdx.x < half) {",
        "if (threadIdx.x < half) {\n            __syncthreads();",
        "not all threads reach the same barrier",
        "__syncthreads",
    ),
    Planted(
        CROSS_ENTROPY,
        "cross_entropy/3",
        "(target_logit - largest)",
        "(to_float(row[target]) - largest)",
        "race in line ",
    ),
    Planted(
        MATMUL,
        "matmul/2",
        "        __syncthreads();\n        for",
        "        for",
        "shared memory is read that nobody has written in line ",
        "sum += a_tile",
    ),
    Planted(
        MATMUL,
        "matmul/3",
        "b_tile[32][33]",
        "b_tile[32][31]",
        "out of bounds in line ",
        "b_tile[y][x] =",
    ),
    Planted(
        MATMUL,
        "matmul/3",
        "a_tile[y][x] = m < M && k0 + x < K ?",
        "if (m < M) a_tile[y][x] = k0 + x < K ?",
        "shared memory is read that nobody has written in line ",
        "sum += a_tile",
    ),
    Planted(
        MATMUL,
        "matmul/6",
        "        cp_async_wait<0>();\n",
        "",
        "an asynchronous copy is not waited for",
    ),
    Planted(
        MATMUL_BF16,
        "matmul/7",
        "PITCH = DEPTH + 8",
        "PITCH = DEPTH + 4",
        "misaligned access in line ",
    ),
    Planted(
        ATTENTION_FORWARD,
        "attention/3",
        "        __syncthreads();  // nobody uses the last tile any more\n",
        "",
        "race in line ",
    ),
    Planted(
        ATTENTION_FORWARD,
        "attention/4",
        "score[q] += __shfl_xor_sync(FULL_WARP, score[q], 1);",
        "if (first + s <= t0 + q) score[q] += __shfl_xor_sync(FULL_WARP, score[q], 1);",
        "a thread returned while others wait for it in line ",
    ),
    # ---- wrong values ----
    Planted(GELU_FORWARD, "gelu/2", "0.044715f", "0.4715f", "wrong: float32, N 8: out["),
    Planted(
        GELU_FORWARD, "gelu/3", "k < PACK_SIZE; k++", "k < 4; k++", "wrong: bfloat16, N 8: out["
    ),
    Planted(
        GELU_FORWARD,
        "gelu/3",
        "grid = ceil_div(N, 256 * PACK_SIZE)",
        "grid = max(1, N // (256 * PACK_SIZE))",
        "was never written",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/2",
        "warp_sum(squares) / C + epsilon",
        "warp_sum(squares) / (C - 1) + epsilon",
        "wrong: float32, N 1, C 8: out[",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/2",
        "    if (lane == 0) rstd[n] = s;\n",
        "",
        "rstd[0] was never written",
    ),
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/3",
        "if (i * WARP + lane < C) squares",
        "if (x[i] != 0.0f) squares",
        "wrong: float32, N 1, C 8: ",
    ),
    Planted(
        COLUMN_SUM,
        "column_sum/2",
        "dbias[column] += sum;",
        "dbias[column] = sum;",
        "wrong: float32, N 1, OC 8: dbias[",
    ),
    Planted(
        CROSS_ENTROPY,
        "cross_entropy/4",
        "own_sum *= __expf(own_largest - x);",
        "",
        "wrong: float32",
    ),
    Planted(
        CROSS_ENTROPY,
        "cross_entropy/3",
        "target >= 0 && v < V",
        "target >= 0",
        "wrong: float32, N 3, V 65, Vp 128: logits[",
    ),
    Planted(
        ATTENTION_FORWARD,
        "attention/2",
        "s <= t; s++",
        "s < t; s++",
        "wrong: float32, B 1, T 1, NH 1, HS 16: ",
    ),
    Planted(
        ADAMW,
        "adamw/1",
        "beta2) * gradient * gradient",
        "beta2) * gradient",
        "wrong: float32, N 8: ",
    ),
    Planted(
        ADAMW, "adamw/1", "if (i >= N) return;", "if (i + 1 >= N) return;", "wrong: float32, N 8: "
    ),
    # ---- right only for some shapes ----
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/3",
        "COLUMNS = ceil_div(C, 32)",
        "COLUMNS = 24",
        "wrong: float32, N 133, C 776: ",
    ),
    Planted(
        MATMUL,
        "matmul/2",
        "m < M && k0 + x < K ?",
        "m < M ?",
        "out of bounds in line ",
        "a_tile[y][x] =",
    ),
]


WASTES = [
    Planted(
        LAYERNORM_FORWARD,
        "layernorm/1",
        "sum = 0.0f;\n    for (int c = 0",
        "sum = 0.0f;\n    for (int c = 0 ",
        "neighbouring lanes are 3072 bytes apart",
    ),
    Planted(MATMUL, "matmul/3", "b_tile[32][33]", "b_tile[32][32]", "all in one bank"),
]
