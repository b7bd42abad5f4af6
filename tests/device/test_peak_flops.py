"""Peak rates of GPUs, by the names that the driver gives them."""

import pytest

from cupygpt.device.peak_flops import peak_flops


@pytest.mark.parametrize(
    ("name", "fp32", "tf32", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 67.0, 494.7, 989.4),
        ("NVIDIA H100 PCIe", 51.0, 378.0, 756.0),
        ("NVIDIA A100-SXM4-40GB", 19.5, 156.0, 312.0),
        ("NVIDIA A100 80GB PCIe", 19.5, 156.0, 312.0),
        ("NVIDIA A100-PCIE-40GB", 19.5, 156.0, 312.0),
        ("NVIDIA GeForce RTX 4090", 82.6, 82.6, 165.2),
        ("NVIDIA GeForce RTX 3060", 12.7, 12.7, 25.5),
        ("NVIDIA GeForce RTX 3060 Ti", 16.2, 16.2, 32.4),
        ("Tesla T4", 8.1, None, None),
    ],
)
def test_known_gpus(name: str, fp32: float, tf32: float | None, bf16: float | None) -> None:
    for precision, tera in (("fp32", fp32), ("tf32", tf32), ("bf16", bf16)):
        assert peak_flops(name, precision) == (None if tera is None else tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Some GPU of the future",
        "",
    ],
)
def test_unknown_gpus_have_no_figure(name: str) -> None:
    assert peak_flops(name, "fp32") is None
