"""The trackers by name."""

from importlib import import_module

from ggcn.tracking.base import Tracker

IN_PROCESS = "tensorboard"
"""the tracker that writes files of its own in rank 0's process"""
KNOWN = {
    "wandb": "ggcn.tracking.weights_and_biases:WandbTracker",
    "mlflow": "ggcn.tracking.mlflow_store:MlflowTracker",
}
"""{name: module:class} of the trackers that run in a process of their own"""


def create(name: str) -> Tracker:
    """The tracker of this name, or of a user's module:class. Raises ImportError or AttributeError where there is
    none."""
    module, _, attribute = KNOWN.get(name, name).partition(":")
    tracker: Tracker = getattr(import_module(module), attribute)()
    return tracker
