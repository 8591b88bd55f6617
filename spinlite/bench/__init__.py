"""Measures what a preset costs on this device: each phase and each way to learn, run for a few steps.

Start reading at `run.bench`.
"""
