"""Sessions of simulated users with slates: one at a time as a Gymnasium environment, or many at once."""
