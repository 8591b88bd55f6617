"""Outside measures of samples: networks that no run trains with.

Start reading at `outside.judge`.
"""
