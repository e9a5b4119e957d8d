"""Experiments whose target is asked, and what a run's ledger says of them."""

import json

from fedjax_post.study import reconciled


def spec_of(name, folder, rows, url=None):
    spec = reconciled.spec_of(name, str(folder), rows)
    return spec if url is None else spec.put({"hosting.url": url, "hosting.model": "tiny"})


def told(directory):
    """What the ledger of a finished run says, over all purposes."""
    lines = [json.loads(line) for line in (directory / "disclosure.jsonl").read_text().splitlines()]
    names = ("queries", "private_tokens", "labels")
    return {name: sum(line[name] for line in lines if line["outside"]) for name in names}
