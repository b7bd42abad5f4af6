"""Several processes that train one model: one rank per GPU, or per CPU process in tests.

environment.py says who this process is, rendezvous.py brings all ranks together over TCP, ranks.py
is what the rest of the program sees of them, watchdog.py ends all when one dies, and
collectives.py sums gradients (nccl.py on GPUs). launcher.py starts local ranks for --gpus N.
"""
