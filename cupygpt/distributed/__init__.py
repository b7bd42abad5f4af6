"""Several processes that train one model: one rank per GPU, or per CPU process in tests.

launcher.py starts the ranks of --gpus N on this machine; launcher_env.py finds out which rank this
process is, whoever started it (launchers.py). rendezvous.py connects all ranks over TCP
(messages.py): rank 0 hears all who come (reception.py) and lets in those who prove that they belong
to the run (handshake.py). ranks.py is what the rest of the program sees of
them, and watchdog.py ends all ranks when one dies. rank_device.py gives each rank its GPU.
collectives.py sums gradients: nccl.py between GPUs, sockets.py in tests without GPUs. zero.py
divides the optimizer's state among the ranks (ZeRO-1).
"""
