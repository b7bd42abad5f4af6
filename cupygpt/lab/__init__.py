"""Kernels to learn from and to try: ladders, contracts of their ops, exercises, and judges."""
