"""Training runs on real images: the main job is ``python -m benchmarks.experiments.demo``."""
