"""Estimates memory, time and disk of a run before anything is downloaded, and chooses memory settings that fit.

Start reading at `make.make_plan`.
"""
