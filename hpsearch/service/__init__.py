"""The other door: a queue of studies, an HTTP API and a page over the verbs that the command line uses."""
