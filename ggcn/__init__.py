"""Energy-based generative ConvNets: models, sampling, learning, and runs that resume exactly."""

__version__ = "0.1.0"
