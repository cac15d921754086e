"""Runs and qrels, metrics, baselines, and the evaluation of a model on a file."""
