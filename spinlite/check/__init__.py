"""Checks a folder or data set before training: what will be used, what will not, and why.

Start reading at `findings.examine_sources`.
"""
