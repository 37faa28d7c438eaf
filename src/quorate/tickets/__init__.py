"""FreeTickets: ensembles of sparse networks, trained sparse from scratch while their live weights move, for less than one dense training.

Source: Liu et al. 2022, "Deep Ensembling with No Overhead for either Training or Testing" (arXiv 2106.14568).
"""

from quorate.tickets.callback import SparseCallback
from quorate.tickets.compaction import Kept, compact, removable
from quorate.tickets.density import counts, erk, mac_aware, uniform
from quorate.tickets.dst import DST
from quorate.tickets.edst import EDST
from quorate.tickets.ensemble import Tickets, load_tickets, save_tickets
from quorate.tickets.fan_in import ConstantFanIn
from quorate.tickets.files import load_ticket, load_ticket_, save_ticket
from quorate.tickets.growth import Gradient, Growth, Random, Static
from quorate.tickets.ledger import Ledger
from quorate.tickets.masks import Masks, apply_, digest, overlap
from quorate.tickets.moves import Moves
from quorate.tickets.patterns import NM, Blocks, Pattern, Unstructured
from quorate.tickets.schedule import Timeline, drop_rate
from quorate.tickets.sparse_training import SparseTraining
from quorate.tickets.ticket import Ticket
from quorate.tickets.weights import sparse_weights

__all__ = [
    "DST", "EDST", "NM", "Blocks", "ConstantFanIn", "Gradient", "Growth", "Kept", "Ledger", "Masks", "Moves", "Pattern", "Random",
    "SparseCallback", "SparseTraining", "Static", "Ticket", "Tickets", "Timeline", "Unstructured", "apply_", "compact", "counts", "digest",
    "drop_rate", "erk", "load_ticket", "load_ticket_", "load_tickets", "mac_aware", "overlap", "removable", "save_ticket",
    "save_tickets", "sparse_weights", "uniform",
]  # fmt: skip
