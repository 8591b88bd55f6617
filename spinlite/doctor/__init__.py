"""Checks whether this computer can train, and says how to fix what can't.

Start reading at `diagnosis.diagnose`.
"""
