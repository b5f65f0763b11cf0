"""The verbs, apart from what they need: the mount command has to know their names only."""

from __future__ import annotations

VERBS = frozenset(
    {
        "list",
        "bind",
        "unbind",
        "doctor",
        "id-ctrl",
        "id-ns",
        "smart-log",
        "error-log",
        "fw-log",
        "effects-log",
        "ebs-stats",
        "get-feature",
        "format",
        "create-ns",
        "delete-ns",
        "attach-ns",
        "detach-ns",
        "reset",
        "controller",
        "perf",
    }
)
