"""Samplers, pruners and the study's storage: the only room that knows Optuna."""
