"""What a network costs: multiply-adds and parameters (counted), latency (measured)."""

from quorate.cost.counting import Cost, UnknownOperatorWarning, count, macs, parameters, training_macs
from quorate.cost.timing import Latency, latency

__all__ = ["Cost", "Latency", "UnknownOperatorWarning", "count", "latency", "macs", "parameters", "training_macs"]
