"""What the header of a GGUF file says about where the file comes from."""

from fedjax_post.hub.gguf.container import Gguf, import_gguf


def header_facts(file: Gguf) -> list[tuple[str, str]]:
    """Returns names and values: whose model it is, in which blocks, and who made these."""
    get = lambda name: file.fields.get(f"general.{name}")
    kinds, kind = import_gguf().LlamaFileType, get("file_type")
    blocks = kinds(kind).name.replace("MOSTLY_", "mostly ") if kind in set(kinds) else "not stated"
    said = [get(name) for name in ("name", "organization", "license")]
    return [
        ("file of the base", file.path.name),
        ("its header", ", ".join(str(text) for text in said if text) or "names nothing"),
        ("its blocks", blocks),
        ("quantised by", get("quantized_by") or "the header names nobody"),
    ]
