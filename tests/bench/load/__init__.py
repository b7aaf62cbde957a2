"""Load on an HTTP server: closed loops that saturate it, and an open loop that measures how long answers take."""
