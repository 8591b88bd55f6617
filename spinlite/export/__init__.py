"""Writes LoRA files for other programs, merged models and test pictures; inspects LoRA and checkpoint files.

The entry point is `export.export`.
"""
