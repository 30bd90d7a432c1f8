"""A small film shop whose right profiles are known."""

from __future__ import annotations

FILMS = [
    ("Red Dawn (1984)", ["Action"]),
    ("Fast Rain (1985)", ["Action", "Crime"]),
    ("Steel Night (1986)", ["Action"]),
    ("Cold Trail (1987)", ["Action", "Crime"]),
    ("Soft Letters (1994)", ["Romance"]),
    ("The Long Kiss (1995)", ["Romance", "Comedy"]),
    ("Paris Waits (1996)", ["Romance"]),
    ("Second Spring (1997)", ["Romance", "Comedy"]),
    ("Moon Garden (2004)", ["Sci-Fi"]),
    ("Heat (2005)", ["Sci-Fi"]),
]
ACTION, ROMANCE = [0, 1, 2, 3], [4, 5, 6, 7]
