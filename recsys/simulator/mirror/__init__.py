"""Users played by a language model that was aligned with real feedback (UserMirrorer, arXiv 2508.18142)."""
