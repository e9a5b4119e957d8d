"""Programs that measure what the library costs; results.jsonl holds what they printed."""
