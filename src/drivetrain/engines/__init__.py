"""The pure heart: graphs, cache keys, splits, metrics. No outside system; clock and randomness are passed in."""
