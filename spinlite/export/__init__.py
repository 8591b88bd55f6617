"""What leaves a run: LoRA files for other programs, whole models, test pictures, and what any such file holds.

The door is `export.export`.
"""
