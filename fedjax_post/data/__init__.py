"""Host side: sources, templates, tokenised tables, partitions and clients' batches."""
