"""Losses as pure functions of parameters, model and batch."""
