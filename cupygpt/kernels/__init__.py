"""From a .cu file to a launch, and matrix products by cuBLASLt.

kernel.py declares, checks and launches a kernel; launch.py is how it is launched; load.py finds,
compiles and keeps its file. matmul.py computes a product by the algorithm that it chose;
cublaslt.py describes it to the library, and calls it.
"""
