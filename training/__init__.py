"""Stages that turn artifacts into artifacts, and the pipeline that orders and resumes them."""
