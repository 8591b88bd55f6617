"""Writes LoRA files for other programs, merged models and test pictures; inspects LoRA and checkpoint files.

Start reading at `export.export`.
"""
