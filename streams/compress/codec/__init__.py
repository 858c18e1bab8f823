"""Images: what is read, composed, coloured and encoded. Runs in decoder processes only."""
