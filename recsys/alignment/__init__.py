"""Preferences: pairs and where they come from, losses over them, rewards, and group policy optimisation."""
