"""One round of self-play: play, measure the opponent, learn, judge.

The door is `session.Session`: what the rounds of a run share.
"""
