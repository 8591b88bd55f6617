"""The study: the methods side by side on the demo model, at equal work, each judged by what nothing trained on.

    python -m spinlite.study

Start reading at `run.run_cell`.
Every cell (an arm with a seed) is a real run of `selfplay.train`; its snapshots are measured, and each gives a line of
`docs/study/results.jsonl`. Cells that are there are passed over, so that the study goes on where it was stopped. The tables
of `docs/study.md` and its figures are made from that file alone.
"""
