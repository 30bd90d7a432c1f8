"""Where data sets come from: one module a family, each handing over the same two tables."""
