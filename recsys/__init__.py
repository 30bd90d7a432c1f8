"""The library: algorithms and artifacts of a generative recommender. No servers, no training schedules."""

__version__ = "0.1.0"
