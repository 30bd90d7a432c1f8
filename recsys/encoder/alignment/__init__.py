"""Tuning a text encoder so that texts of users and items lie close where behaviour brought them together.

The family of EasyRec (arXiv 2408.08821): contrastive learning between profile texts and interactions, whose result is
a text encoder that also places users and items it has never seen. Only the settings are named here: the encoder's
configuration contains them, and the modules of this package read that configuration.
"""

from recsys.encoder.alignment.config import AlignmentConfig, ProfileConfig

__all__ = ["AlignmentConfig", "ProfileConfig"]
