"""What spinlite understands of a folder or data set, before anything is trained.

The door is `findings.findings`.
"""
