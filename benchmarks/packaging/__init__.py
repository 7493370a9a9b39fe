"""How fast a model becomes an image in a registry, beside a Dockerfile that somebody wrote by hand for the same model.

`world` holds what both are given: the flights model with a large file of weights, a base, a folder of wheels; `registries` the registry.
`ours` and `naive` are the two entrants; `publish`, `large` and `start` are the races with their targets. `scratch` and `containers` see to
it that nothing is left behind.
"""
