"""HTTP/1.1 on uvloop and httptools: the server that replica and gateway listen with, and the gateway's client.

Measured before it was written (docs/decisions.md): with the model in a process of its own this answers twice as many requests as
uvicorn does with the model inside.
"""
