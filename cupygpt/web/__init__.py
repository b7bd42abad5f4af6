"""Files from the network: whole and right, or absent."""
