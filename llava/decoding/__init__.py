"""Compiled functions for a CPU: a decoding step, layers of 8 bits, attention; and how they are built."""
