"""One module a race, each with `run_race(setting) -> Findings`."""
