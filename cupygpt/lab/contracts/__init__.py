"""What the ops of the lab take and compute, and their calls on the emulator."""
