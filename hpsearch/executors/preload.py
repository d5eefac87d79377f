"""First import of the fork server: it and all workers leave signals to the orchestrator, from their first moment."""

from hpsearch.machine import ignore_signals

ignore_signals()
