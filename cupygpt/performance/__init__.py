"""What limits a kernel on a GPU, and about how long it takes there: from counts, without a GPU.

gpus.py is the table of GPUs, estimate.py the time model with its constants, unrolling.py reads from
the source how many loads nvcc keeps under way, registers.py asks NVIDIA's compiler, report.py
writes it all down.
"""
