"""The language model: one decoder for all families, and views that restrict its use."""
