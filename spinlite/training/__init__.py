"""One round of self-play: play, measure the opponent, learn, judge.

Start reading at `session.Session`, which the rounds of a run share; `step.step` is the training step.
"""
