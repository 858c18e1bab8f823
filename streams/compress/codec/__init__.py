"""The image codec: decodes, composes, converts and encodes. Runs in decoder processes only."""
