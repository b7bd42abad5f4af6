from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.errors import CheckpointError
from cupygpt.model.init_weights import initial_parameters

CONFIG = GPTConfig(maxT=8, V=65, L=1, NH=2, C=16)


def llmc_file(version: int, *, padding: float = 0.0) -> bytes:
    """A model file put together by hand from the format's description."""
    header = np.zeros(256, "<i4")
    header[:8] = [20240326, version, 8, 65, 1, 2, 16, 128]
    rng = np.random.default_rng(3)
    sizes = [16 * 128, 16 * 8, 16, 16, 48 * 16, 48, 256, 16, 16, 16, 1024, 64, 1024, 16, 16, 16]
    body = rng.standard_normal(sum(sizes)).astype("<f4")
    body[65 * 16 : 128 * 16] = padding
    if version == 5:
        return header.tobytes() + to_bfloat16(body).tobytes()
    return header.tobytes() + body.tobytes()


@pytest.mark.parametrize(("version", "precision"), [(3, "fp32"), (5, "bf16")])
def test_a_file_in_llmc_layout_round_trips_byte_for_byte(
    tmp_path: Path, version: int, precision: str
) -> None:
    path, copy = tmp_path / "llmc.bin", tmp_path / "copy.bin"
    path.write_bytes(llmc_file(version))
    model = load_model(path)
    assert (model.config, model.precision, model.warnings) == (CONFIG, precision, ())
    save_model(copy, model.config, model.parameters, precision)
    assert copy.read_bytes() == path.read_bytes()


def test_nonzero_padding_rows_are_zeroed_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "padded.bin"
    path.write_bytes(llmc_file(3, padding=0.5))
    model = load_model(path)
    assert "63 padding rows" in model.warnings[0]
    assert not model.parameters[65 * 16 : 128 * 16].any()
    assert model.parameters[: 65 * 16].all()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 20240520, "this is a GPT-2 token file, not a model"),
        (0, 7, r"this is not a model \(magic number 7, expected 20240326\)"),
        (1, 4, "version 4"),
        (5, 3, "16 channels do not divide by 3 heads"),
        (7, 256, "padded vocabulary 256"),
        (3, -5, "vocabulary must be at least 1"),
        (4, 2, "cut short"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, position: int, value: int, message: str) -> None:
    raw = bytearray(llmc_file(3))
    raw[4 * position : 4 * position + 4] = np.int32(value).tobytes()
    path = tmp_path / "bad.bin"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be read"):
        load_model(tmp_path / "none.bin")
    (tmp_path / "short.bin").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="the header alone has 1,024"):
        load_model(tmp_path / "short.bin")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = initial_parameters(CONFIG, 1)
    weights[7] = np.nan
    save_model(tmp_path / "nan.bin", CONFIG, weights, "fp32")
    with pytest.raises(CheckpointError, match="NaN"):
        load_model(tmp_path / "nan.bin")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 30_000))
def test_a_file_of_any_other_length_is_refused(tmp_path: Path, cut: int) -> None:
    raw = llmc_file(3)
    changed = raw[:cut] if cut < len(raw) else raw + b"\0" * (cut - len(raw) + 1)
    path = tmp_path / "cut.bin"
    path.write_bytes(changed)
    with pytest.raises(CheckpointError):
        load_model(path)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_rounds_to_nearest_even(values: list[float]) -> None:
    array = np.array(values, np.float32)
    rounded = from_bfloat16(to_bfloat16(array))
    assert np.array_equal(np.isnan(rounded), np.isnan(array))
    finite = np.abs(array) < 3e38
    ulp = np.maximum(np.abs(array[finite]) * 2.0**-8, 2.0**-133)
    assert (np.abs(rounded[finite] - array[finite].astype(np.float64)) <= ulp).all()


def test_bfloat16_ties_go_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32)
    assert to_bfloat16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81]
