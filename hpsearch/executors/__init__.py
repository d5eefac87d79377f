"""Carrying jobs to workers: in this process, in processes of their own."""
