"""Kernels to learn from and to try: ladders, the contracts of their ops, and what judges them."""
