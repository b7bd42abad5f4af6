"""Where arrays live: the CPU and the GPU behind one interface."""
