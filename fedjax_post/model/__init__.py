"""The language model: one decoder for all families, and the view through which it is used."""
