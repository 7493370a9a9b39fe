"""The races: what Drivetrain promises about time and memory, measured beside its peers on one machine.

`python -m benchmarks` measures everything, `--only chain,help` a part. Each module of `races/` is one race; `environments.py`
is the table of the peers.
"""
