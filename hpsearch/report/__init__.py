"""Reports: pure tables (`tables`), pure figures (`figures`), one HTML page (`page`). Imports nothing by itself: pandas is slow."""
