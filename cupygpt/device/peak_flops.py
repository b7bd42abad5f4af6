"""What GPUs could reach: dense tensor rates by the makers' datasheets, for the share (MFU) shown.

Rates are without sparsity, at boost clock, with sums in float32. Sources: NVIDIA's datasheets of
A2, A10, A30, A40, A100, H100, H200, L4, L40, L40S and T4, HGX B200 and GB200 NVL72; the white
papers of Turing, Ampere GA102, Ada and Blackwell for GeForce and RTX (GA106 from its clock).
"""

import re

_RATES: tuple[tuple[str, float, float | None, float | None], ...] = (
    # Name without "NVIDIA", "GeForce" and "Tesla": float32, TF32 and bfloat16 in TFLOP/s.
    (r"T4", 8.1, None, None),
    (r"A2", 4.5, 9.0, 18.0),
    (r"A10", 31.2, 62.5, 125.0),
    (r"A10G", 31.5, 35.0, 70.0),
    (r"A30", 10.3, 82.0, 165.0),
    (r"A40", 37.4, 74.8, 149.7),
    (r"A100[- ](SXM4[- ](40|80)GB|PCIE[- ](40|80)GB|80GB PCIe)", 19.5, 156.0, 312.0),
    (r"L4", 30.3, 60.0, 121.0),
    (r"L40", 90.5, 90.5, 181.0),
    (r"L40S", 91.6, 183.0, 362.0),
    (r"H100 80GB HBM3", 67.0, 494.7, 989.4),
    (r"H100 PCIe", 51.0, 378.0, 756.0),
    (r"H100 NVL", 60.0, 417.5, 835.5),
    (r"H200", 67.0, 494.7, 989.4),
    (r"H200 NVL", 60.0, 417.5, 835.5),
    (r"GH200 (480GB|144G HBM3e)", 67.0, 494.7, 989.4),
    (r"B200", 75.0, 1125.0, 2250.0),
    (r"GB200", 80.0, 1250.0, 2500.0),
    (r"RTX A6000", 38.7, 77.4, 154.8),
    (r"RTX 6000 Ada Generation", 91.1, 182.1, 364.2),
    (r"RTX 2060", 6.5, None, None),
    (r"RTX 2070", 7.5, None, None),
    (r"RTX 2080", 10.1, None, None),
    (r"RTX 2080 Ti", 13.4, None, None),
    (r"RTX 3050", 9.1, 9.1, 18.2),
    (r"RTX 3060", 12.7, 12.7, 25.5),
    (r"RTX 3060 Ti", 16.2, 16.2, 32.4),
    (r"RTX 3070", 20.3, 20.3, 40.6),
    (r"RTX 3070 Ti", 21.7, 21.7, 43.5),
    (r"RTX 3080", 29.8, 29.8, 59.5),
    (r"RTX 3080 Ti", 34.1, 34.1, 68.2),
    (r"RTX 3090", 35.6, 35.6, 71.0),
    (r"RTX 3090 Ti", 40.0, 40.0, 80.0),
    (r"RTX 4060", 15.1, 15.1, 30.2),
    (r"RTX 4060 Ti", 22.1, 22.1, 44.1),
    (r"RTX 4070", 29.1, 29.1, 58.3),
    (r"RTX 4070 SUPER", 35.5, 35.5, 71.0),
    (r"RTX 4070 Ti", 40.1, 40.1, 80.2),
    (r"RTX 4070 Ti SUPER", 44.1, 44.1, 88.2),
    (r"RTX 4080", 48.7, 48.7, 97.5),
    (r"RTX 4080 SUPER", 52.2, 52.2, 104.4),
    (r"RTX 4090", 82.6, 82.6, 165.2),
    (r"RTX 5060", 19.2, 19.2, 38.4),
    (r"RTX 5060 Ti", 23.7, 23.7, 47.4),
    (r"RTX 5070", 30.9, 30.9, 61.7),
    (r"RTX 5070 Ti", 43.9, 43.9, 87.9),
    (r"RTX 5080", 56.3, 56.3, 112.6),
    (r"RTX 5090", 104.8, 104.8, 209.5),
)


def peak_flops(gpu_name: str, precision: str) -> float | None:
    """Operations per second of `gpu_name` (as the driver gives it) in fp32, tf32 or bf16.

    None for a GPU not in the table, for a slice of one (MIG), for a laptop's variant, and for a
    precision it has no units for: no figure rather than a wrong one.
    """
    short = re.sub(r"\b(NVIDIA|GeForce|Tesla) ", "", gpu_name.strip())
    column = ("fp32", "tf32", "bf16").index(precision)
    for pattern, *rates in _RATES:
        if re.fullmatch(pattern, short):
            rate = rates[column]
            return None if rate is None else rate * 1e12
    return None
