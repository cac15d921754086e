"""Rerankers: what all kinds share (reranker), each kind (cross_encoder), and the contract of a saved one.

The place for LLM decoders is `llm_decoder.py` beside `cross_encoder.py`; for padding-free execution, `packing.py`.
"""
