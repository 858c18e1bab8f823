"""Decoder processes that can be killed, and their pool."""
