"""Tickets as sparse as they are: kernels that touch live weights alone, made for the processor at hand.

    graphs/    a program → layers          machine/   text of a routine → its code, kept on disk          kernels/   a layer → such a text
    choices (which kernel) · planning, jobs, team (running) · sparse (the callable) · tuning, trials, explaining

:class:`quorate.runtime.sparse.sparse.SparseNetwork` is what others use. Needs llvmlite (``quorate[sparse]``), imported on use.
"""
