"""Commands and screens: everything a person types and reads.

Start reading at `app.main`.
"""
