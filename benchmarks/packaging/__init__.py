"""How fast a model becomes an image in a registry, beside a Dockerfile that somebody wrote by hand for the same model.

`world` holds what both are given: the flights model with a large file of weights, a base, a folder of wheels and a registry; `ours` and
`naive` are the two entrants, each a command of its own; `judged` has the races with their targets.
"""
