"""Lists for every user of a log, made offline: a job of shards that can be killed and goes on.

Imports nothing heavy itself, for the command line's sake.
"""
