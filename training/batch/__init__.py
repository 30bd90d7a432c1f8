"""Work over whole tables, offline: lists for every user of a log, vectors and semantic IDs of items. Each is a job of
shards, which can be killed and goes on.

Imports nothing heavy itself, for the command line's sake.
"""
