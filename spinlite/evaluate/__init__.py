"""Compares models on the same prompts, by networks that no run trains with: scorers that people know, and KID.

Start reading at `evaluate.evaluate`.
"""
