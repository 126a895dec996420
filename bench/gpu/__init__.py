"""The sections of bench/gpu_check.py, a file each, and what they share."""
