"""Looks at training data before a run does: `check` and what it is made of. Reads, never trains; no model unless one is named."""
