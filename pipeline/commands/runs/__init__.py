"""Commands on runs: what costs what, training, and what came of it."""
