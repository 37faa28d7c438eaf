"""Tables: a declared schema, columns as features, the encoder that goes with the model, and the loader."""

from quorate.data.tables.encoder import TableEncoder
from quorate.data.tables.table import read_table, table

__all__ = ["TableEncoder", "read_table", "table"]
