"""HTTP to hosts that users name: SSRF protection, limits, decompression."""
