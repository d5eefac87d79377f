"""Values and rules that everything shares; no files, no processes, no third party."""
