"""Where pairs come from: one module a source, each a function from what was observed to `PreferencePairs`."""
