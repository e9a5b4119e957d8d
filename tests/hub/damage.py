"""Damaged copies of the files that a user may bring: bytes, and fields of JSON, changed by seed.

`python tests/hub/damage.py SEED COUNT` tries many, and prints what became of each kind.
"""

import collections
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, 1e308, float("nan"), float("inf"), 10**6, 2**31),
    *(
        2**63,
        -(2**63),
        10**30,
        "",
        "x",
        "../x",
        "/etc/passwd",
        "llama",
        "float64",
        "(a+)+b",
        "\ud800",
    ),
    *([], {}, [[]], {"x": {}}, [0], ["x"], [None], {"x": 1}, {"(.*)*x": 1}, [1] * 50),
)


def damage(path: Path, rng: random.Random) -> str:
    """Changes one file in place; returns how."""
    ways = [_flip, _cut, _grow, _zero]
    if path.suffix == ".json":
        ways += [_field] * 8 + [_deep, _other_kind]
    if path.suffix == ".safetensors":
        ways += [_header] * 8
    way = rng.choice(ways)
    path.write_bytes(way(path.read_bytes(), rng))
    return way.__name__.strip("_")


def _flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        data[rng.randrange(min(len(data), rng.choice((64, 2000, len(data)))))] ^= (
            1 << rng.randrange(8)
        )
    return bytes(data)


def _cut(data, rng):
    return data[: rng.randrange(len(data))]


def _grow(data, rng):
    return data + rng.randbytes(rng.randrange(1, 20))


def _zero(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + b"\0" * min(8, len(data) - start) + data[start + 8 :]


def _deep(data, rng):
    return b'{"a":' * 3000 + b"1" + b"}" * 3000


def _other_kind(data, rng):
    return json.dumps(rng.choice(VALUES)).encode()


def _field(data, rng):
    return json.dumps(_changed(json.loads(data), rng)).encode()


def _changed(tree, rng):
    """A field of a tree is replaced, taken away, or changes places with another."""
    spots = list(_spots(tree))
    if not spots:
        return rng.choice(VALUES)
    holder, key = rng.choice(spots)
    way = rng.random()
    if way < 0.6:
        holder[key] = rng.choice(VALUES)
    elif way < 0.8:
        del holder[key]
    else:
        other, place = rng.choice(spots)
        holder[key], other[place] = other[place], holder[key]
    return tree


def _spots(tree, depth=0):
    """Where values stand; of long lists and tables the first few."""
    if depth > 4 or not isinstance(tree, dict | list):
        return
    for key in list(tree)[:40] if isinstance(tree, dict) else range(min(len(tree), 5)):
        yield tree, key
        yield from _spots(tree[key], depth + 1)


def _header(data, rng):
    """The header of a safetensors file says something else; the bytes of the tensors stay."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    way = rng.randrange(6)
    if way == 0:
        entry["data_offsets"][rng.randrange(2)] += rng.choice((-4, 4, -(10**6), 10**12))
    elif way == 1:
        other = header[rng.choice(names)]
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif way == 2:
        entry["shape"] = rng.choice(
            ([], [0], [-1], [2**40, 2**40], entry["shape"][::-1], "x", None)
        )
    elif way == 3:
        entry["dtype"] = rng.choice(("F64", "F16", "I32", "F8_E4M3", "Q4", 5))
    elif way == 4:
        header = _changed(header, rng)
    else:
        header[rng.choice(("x", "__metadata__", "../x"))] = header.pop(rng.choice(names))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def make(folder: Path) -> dict:
    """Writes one folder of each kind; returns `{name: function that loads a copy of it}`."""
    import jax

    from fedjax_post.adapters.lora import add_lora
    from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
    from fedjax_post.hub.files import find_folder
    from fedjax_post.hub.load import load_model, save_model
    from fedjax_post.hub.peft import load_adapter, save_adapter
    from fedjax_post.hub.prompt import load_prompt, save_prompt
    from fedjax_post.hub.tokenizer import load_tokenizer
    from fedjax_post.testing.models import tiny_model

    model = tiny_model()
    save_model(folder / "model", model)
    _shard(folder / "model", folder / "sharded")
    save_adapter(folder / "adapter", *add_lora(model, jax.random.key(0), rank=2, alpha=4))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config |= {"rank_pattern": {"x": 3}, "alpha_pattern": {"x": 3.0}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_prompt(folder / "soft", model, add_soft_prompt(model, jax.random.key(0), length=2))
    save_prompt(folder / "words", model, text_prompt([3, 4]))
    keep = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    (folder / "tokenizer").mkdir()
    for name in keep:
        shutil.copy(find_folder("builtin") / name, folder / "tokenizer" / name)
    return {
        "model": load_model,
        "sharded": load_model,
        "adapter": lambda path: load_adapter(path, model),
        "soft": lambda path: load_prompt(path, model),
        "words": lambda path: load_prompt(path, model),
        "tokenizer": load_tokenizer,
    }


def _shard(whole: Path, folder: Path):
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    shutil.copy(whole / "config.json", folder)
    tensors, weight_map = load_file(whole / "model.safetensors"), {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        shard = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def attempt(load, source: Path, target: Path, rng: random.Random) -> tuple[str, str]:
    """Loads a damaged copy; what became of it, and how it was damaged with what was said."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    path = rng.choice(sorted(target.iterdir()))
    how = f"{path.name} by {damage(path, rng)}"
    try:
        load(target)
    except (ValueError, OSError) as error:
        told = f"{how}: {error}"
        named = str(target) in str(error) and "\n" not in str(error)
        return ("refused" if named else "refused without its name, or in lines"), told
    except BaseException as error:
        return "traceback", f"{how}: {type(error).__name__}: {error}"
    return "loaded", how


def main(seed: int, count: int):
    """Tries `count` damages of each kind of folder, and prints what became of them."""
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        loads = make(Path(place))
        for name, load in loads.items():
            rng = random.Random(f"{name} {seed}")
            for number in range(count):
                print("at", name, number, flush=True, file=sys.stderr)
                what, told = attempt(load, Path(place) / name, Path(place) / "damaged", rng)
                found[what] += 1
                if what not in ("loaded", "refused"):
                    print(what, name, told[:300].encode("ascii", "replace").decode(), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
