"""This machine: processes, locks, signals, devices, durable files, requests to a running study."""
