"""What `scripts/bench/aggregation.py` measures: settings on disk, the product's merge, and the reference beside it."""
