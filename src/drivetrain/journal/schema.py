"""The journal's tables, and how a database of an earlier version gets those that it lacks."""

from __future__ import annotations

RUNS = """
create table if not exists runs (
    id text primary key, lifecycle text not null, state text not null, exit_code integer,
    started real not null, ended real, pid integer not null, facts text not null
);
create table if not exists attempts (
    run_id text not null references runs(id), stage text not null, attempt integer not null, state text not null,
    key text not null, started real not null, ended real, peak_memory integer not null default 0,
    outputs text, message text not null default '', hint text not null default '',
    primary key (run_id, stage, attempt)
);
create table if not exists events (
    run_id text not null, stage text not null, time real not null, text text not null
);
create index if not exists events_by_run on events (run_id, stage);
create table if not exists predictions (
    id text primary key, revision text not null, run_id text not null, time real not null
);
create table if not exists file_digests (
    path text primary key, size integer not null, mtime_ns integer not null, inode integer not null, digest text not null
);
"""

LOOP = """
create table if not exists decisions (
    id text primary key, at real not null, "trigger" text not null, action text not null, state text not null,
    reason text not null, numbers text not null, run_id text, revision text, changed real not null
);
create table if not exists decision_steps (
    decision_id text not null references decisions(id), at real not null, state text not null, reason text not null
);
create index if not exists steps_by_decision on decision_steps (decision_id);
create table if not exists approvals (
    decision_id text primary key, approved integer not null, at real not null
);
create table if not exists alerts (
    fingerprint text not null, starts_at text not null, status text not null, document text not null,
    first real not null, last real not null, times integer not null,
    primary key (fingerprint, starts_at, status)
);
create index if not exists alerts_by_time on alerts (last);
create table if not exists rollouts (
    candidate text primary key, state text not null, changed real not null
);
create table if not exists loop_state (
    name text primary key, value text not null
);
"""

MIGRATIONS = (RUNS, LOOP)
"""What brings a database of version n (SQLite's `user_version`) to n + 1."""
