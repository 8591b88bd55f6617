"""Commands and screens: everything a person types and reads.

The door is `app.main`.
"""
