"""Compressors in training libraries, searches and loggers.

Each module is for one library, and imports only that: `transformers`, `lightning` and `keras` have
a `CompressionCallback`, `optuna` draws configurations, and `recorder` collects numbers, for which
`tensorboard` and `mlflow` have sinks.
"""
