"""Memory, time and disk of a run before anything is downloaded, and the way it fits into memory.

The door is `make.take_plan`.
"""
