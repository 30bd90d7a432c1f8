"""Requests and responses of the API, with their limits and examples. Behaviour is the routes' business."""
