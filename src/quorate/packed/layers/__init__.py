"""Packed layers: M members' parameters in one module, kept apart (Laurent et al., ICLR 2023, arXiv:2210.09184, §3)."""
