"""The loop: what watches the service, decides, and acts. Wires engines and needs together; only `cli/` is above it.

What measures or decides by itself, from values alone, belongs into `engines/`; what talks to one outside system into `backends/`.
"""
