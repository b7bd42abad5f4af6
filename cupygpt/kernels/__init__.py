"""From a .cu file to a launch, and matrix products by cuBLASLt."""
