"""The HTTP API and the dashboard of a served recommender."""
