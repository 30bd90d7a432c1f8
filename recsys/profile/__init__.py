"""Profiles of users in words, with the events that support them: generation, streaming update, utility."""
