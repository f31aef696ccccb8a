"""The outer loop, its devices, checkpoints and evaluation."""
