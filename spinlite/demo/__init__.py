"""The embedded demo: a small base model, its pictures, and the program that made them.

The door is `make`: `python -m spinlite.demo.make`.
"""
