"""Needs and their answers. A folder is a need: its `__init__.py` is the contract, each other file one answer to it.

Answers do not inherit; each imports its library at the top of its own file, since nothing imports that file until
`wiring.py` chooses it by name. Needs do not know each other, and answers are given values, never the definition.
"""
