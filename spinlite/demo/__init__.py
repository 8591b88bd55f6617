"""The embedded demo: a small base model, its pictures, and the program that made them.

Start reading at `make.make`: `python -m spinlite.demo.make`.
"""
