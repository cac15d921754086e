"""Scores to probabilities: fitting a calibration, measuring it on queries that it has not seen, thresholds."""
