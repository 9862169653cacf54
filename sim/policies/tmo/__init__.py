"""Policies that choose a tier and the modalities of every turn of a dialogue (TMO)."""
