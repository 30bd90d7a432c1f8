"""Candidates from several sources, and their fusion."""
