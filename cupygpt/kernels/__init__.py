"""From a .cu file to a launch, and matrix products by cuBLASLt.

kernel.py declares, checks and launches a kernel; launch.py is how it is launched; load.py finds,
compiles and keeps its file. matmul.py computes a product; matmul_plan.py describes it and chooses
its algorithm; cublaslt.py calls the library.
"""
