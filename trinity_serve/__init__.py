"""Floor 3: serves AFMoE models: REST, engine, attention model, Ray application, command line."""

__version__ = "0.1.0"
