"""Outside measures of samples: networks that no run trains with.

The door is `kid.evaluate`.
"""
