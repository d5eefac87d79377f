"""hpsearch: hyperparameter search built around fine-tuning trials.

The package is light to import: heavy libraries load inside the room that owns them, when a verb needs them.
"""

__version__ = "0.1.0"
