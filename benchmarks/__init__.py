"""What the programs cost, each figure beside a floor or a peer measured in the same run; ``./benchmarks/run.py`` runs it."""
