"""What four papers claim, decided by what this program measures: `python -m sdlab claims`.

A claim is decided by the figures of an experiment, which is a command of this program. `measured` lists the
experiments, one file a paper lists its claims, `decisions` holds the statistics by which they are decided.
"""
