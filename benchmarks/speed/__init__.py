"""Speed figures, one module each; `python -m benchmarks.speed` runs all of them."""
