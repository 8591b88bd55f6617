"""Estimates memory, time and disk of a run before anything is downloaded, and chooses memory settings that fit.

The entry point is `make.make_plan`.
"""
