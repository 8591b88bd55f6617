"""What a preset costs on this device: each phase and each way of learning, run for a few steps and measured.

The door is `run.bench`.
"""
