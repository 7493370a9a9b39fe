"""Where the replica differs from Cog's own server on purpose: a rule for each reason. Anything that no rule names is a fault."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A difference, and why. `lines` are patterns for lines of `compare.lines`, whole; `cases` one for names of cases."""

    name: str
    reason: str
    lines: Sequence[str]
    cases: str = ".*"

    def names(self, case: str, line: str) -> bool:
        """Whether it is this that the line tells."""
        words = re.sub(r"^\d+: ", "", line)
        return re.fullmatch(self.cases, case) is not None and any(re.fullmatch(one, words, re.S) for one in self.lines)


RULES = (
    Rule(
        "versions",
        "`version` in `/health-check` names what answers: `drivetrain`, and the Cog whose behaviour it has, without Cog's build.",
        (
            r'body\.version\.(git_sha|build_time): "<text>" -> none',
            r'body\.version\.drivetrain: none -> "<text>"',
        ),
    ),
    Rule(
        "setup logs",
        "`setup.logs` is what the runner printed; Cog's server adds its own lines.",
        (r'body\.setup\.logs: "<text>" -> none',),
    ),
    Rule(
        "bodies refused as JSON",
        "A body that cannot be read is refused in the form of every other refusal (`detail`, with the place); Cog's server answers text.",
        (
            r"content-type: text/plain; charset=utf-8 -> application/json",
            r'body: "Failed to (parse|deserialize) .* -> \{"detail": \[\{"loc": .*',
        ),
    ),
    Rule(
        "empty id",
        "An empty `id` is none: the prediction gets a new one, so that it can be found again.",
        (r'body\.id: "" -> "<new id>"',),
        "an empty id",
    ),
    Rule(
        "null for an optional input",
        "The schema calls such an input nullable, and the runner's default for it is None: an explicit null is accepted, too.",
        (r"status: 422 -> 200", r"body\..*"),
        "null for an optional text",
    ),
    Rule(
        "key twice",
        "Of two equal keys around the input the last counts, as it does within the input.",
        (r"status: 422 -> 200", r"content-type: .*", r'body: "Failed to deserialize .*duplicate field.* -> \{"id".*'),
        "key twice",
    ),
    Rule(
        "deep nesting",
        "Cog's server reads 128 levels; here the nesting is read, and then refused for what it is.",
        (r"status: 400 -> 422",),
        "deep nesting",
    ),
    Rule(
        "malformed HTTP",
        "What is no HTTP request gets 400 in both; here with words.",
        (r"content-type: none -> application/json", r'body: "" -> \{"error": "not a valid HTTP/1.1 request"\}'),
        "malformed request line",
    ),
    Rule(
        "words of an exception",
        "`error` is the exception's type and words. Cog's server puts `Prediction failed:` before them, twice, or other words of its own.",
        (
            r'body(\[\d+\]\[1\])?\.error: "Prediction failed: (Prediction failed|Generator iteration error|Async prediction failed): '
            r'(?P<words>.*)" -> "(?P=words)"',
        ),
    ),
    Rule(
        "NaN",
        "NaN and infinities are no JSON: the prediction fails in both; here the words say so.",
        (r'body\.error: "Prediction failed: Failed to parse output JSON: .* -> "Failed to serialize output: .*"',),
        "NaN returned",
    ),
    Rule(
        "logs of a failed prediction",
        "What a failed or canceled prediction printed is in the answer; Cog's server drops it there, and has it in webhooks alone.",
        (r'body\.logs: "" -> ".+"',),
    ),
    Rule(
        "work beyond capacity",
        "It waits in a bounded queue, and is answered 503 with `Retry-After` when that is full; Cog's server answers 409 at once.",
        (r"status: 409 -> 200", r'body\.(error|status): .*', r"body\.(id|logs|metrics|output): none -> .*"),
        "second prediction while one runs",
    ),
    Rule(
        "streams of plain iterators",
        "Whatever yields can be followed as an event stream, with or without `@cog.streaming`.",
        (
            r"status: 406 -> 200",
            r"content-type: application/json -> text/event-stream",
            r"cache-control: none -> no-cache",
            r'body: .*does not support streaming.* -> \[\["start".*\["output".*\["completed".*',
        ),
        "event stream from a plain iterator",
    ),
    Rule(
        "files by address alone",
        "A file is given as `data:`, `http:` or `https:`; Cog's server opens a path of its own machine as well.",
        (r'body\.error: "Prediction failed: .*FileNotFoundError.*" -> "NotFetched: .*"',),
        "text as file",
    ),
    Rule(
        "a file that cannot be had",
        "The prediction fails in both; the words are those of another HTTP client.",
        (r'body\.error: "Input validation error: .*" -> "NotFetched: .*"',),
        "address that nobody answers",
    ),
    Rule(
        "when to try again",
        "Every 503 has `Retry-After` (and `X-Drivetrain-Not-Run` where the call was not run).",
        (r"retry-after: none -> 1",),
    ),
    Rule(
        "worker died",
        "The prediction that was being run is answered 500, and a new worker is started: until it is ready, 503. Cog's server answers "
        "200, says `Worker crashed`, and then 409 for ever.",
        (r"status: 200 -> 500", r"status: 409 -> 503", r"body\.error: .* -> .*"),
        "worker dies",
    ),
)  # fmt: skip

ALONE = (
    ("address", "The replica listens on 127.0.0.1 unless told otherwise; Cog's server on every address."),
    (
        "token",
        "With `DRIVETRAIN_TOKEN` set, `/shutdown` and cancellation need it as bearer token; Cog's server has none.",
    ),
    (
        "inputs are always checked",
        "Cog's server checks them only where `.cog/openapi_schema.json` lies in its directory.",
    ),
    ("deadlines", "`X-Request-Timeout-Ms`: a prediction that has not begun by then is answered 504, and never run."),
    (
        "time limit",
        "A prediction that runs longer than `--timeout` is ended with its worker, and answered 504; Cog's server waits.",
    ),
    ("ids", "Where neither path nor body names one, `X-Request-Id` is the prediction's id."),
    ("metrics", "`/metrics`, where a failed prediction counts as failed although Cog's API answers 200."),
    ("order of webhooks", "The events of one prediction are sent one after another; redirects are not followed."),
)
"""What the replica has beyond, which no request to Cog's server can show."""
