"""With pytest-xdist each worker keeps to cores of its own; to be imported before NumPy.

Otherwise the threads of each, of BLAS and of the CPU device, are as many as the machine has cores.
"""

import os

worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):
    number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number % len(cores) :: count])
