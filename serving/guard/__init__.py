"""Who may ask the API for what, and how much of it: keys, roles, rate limits, and the record of what was changed."""
