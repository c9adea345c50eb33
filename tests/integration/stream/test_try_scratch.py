from __future__ import annotations
import itertools, json
import numpy as np, pytest
from tensordb_data import Array, TensorDB, Text, Bytes
from tensordb_data.errors import *
LENGTHS = (np.random.default_rng(0).lognormal(2, 1, 150).astype(int) % 60).tolist()

@pytest.fixture
def texts(db):
    schema = {"tokens": Array("int32", (None,)), "mask": Array("int8", (None,)), "n_tokens": int, "number": int, "f": float}
    with db.data.writer("texts", schema=schema) as w:
        for k, n in enumerate(LENGTHS):
            w.add(tokens=np.arange(n, dtype=np.int32) + 1000 * k, mask=np.ones(n, np.int8), n_tokens=n, number=k, f=1.5)
    return db.data.find({"dataset": "texts"})

def test_resume_every(texts):
    for opts in ({"batch_size": 2, "pack": 20, "long": "split"}, {"batch_size": 2, "pack": 20, "long": "drop"},
                 {"batch_tokens": 20, "long": "drop", "length": "n_tokens"}, {"batch_size": 3, "pack": 20, "long": "cut"}):
        opts = {**opts, "length": "n_tokens", "shuffle": True, "passes": 2, "fields": ["tokens", "number"]}
        s = texts.stream(**opts)
        out, states = [], []
        for b in s:
            out.append(b["number"].tolist()); states.append(json.loads(json.dumps(s.state_dict())))
        for i, st in enumerate(states[:-1]):
            a = texts.stream(**opts); a.load_state_dict(st)
            assert [b["number"].tolist() for b in a] == out[i+1:], (opts, i)
        p = texts.stream(**opts).pin(); st0 = p.state_dict()
        for i in range(len(states)):
            f = p.advance(st0, i + 1)
            assert (f["pass"], f["position"]) == (states[i]["pass"], states[i]["position"]), (opts, i)
        for world in (2, 7):
            st = states[len(states)//3]
            got = []
            for r in range(world):
                a = texts.stream(**opts, rank=r, world_size=world).pin(); a.load_state_dict(st)
                got.append([b["number"].tolist() for b in a])
            assert len({len(g) for g in got}) == 1
            print(opts, world, len(got[0]))

def test_empty(db, texts):
    none = texts & {"number": -1}
    assert list(none.stream(batch_tokens=10, length="n_tokens", passes=1)) == []
    assert list(none.stream(batch_size=2, pack=10, length="n_tokens", passes=1)) == []
    with pytest.raises(NotFoundError): next(iter(none.stream(batch_tokens=10, length="n_tokens")))

def test_oddities(db, texts):
    for opts in ({"batch_tokens": 64}, {"batch_tokens": 64, "length": "f"}, {"batch_tokens": 64, "length": "number", "sortless": 1},
                 {"batch_size": 2, "pack": 64, "length": "number", "fields": ["number"]}, {"batch_size": 2, "pack": 64, "length": "n_tokens", "fields": ["number"]},
                 {"batch_tokens": "64"}, {"batch_tokens": 64.0}, {"batch_tokens": -1}, {"pack": 64, "batch_size": 0}, {"pack": 10, "batch_size": 2, "length": ""},
                 {"batch_size": 4, "length": "n_tokens"}, {"batch_size": 4, "long": "drop"}, {"batch_tokens": 64, "window": 3}, {"batch_tokens": 64, "length": "_id"},
                 {"batch_tokens": 64, "length": "n_tokens", "replacement": True}):
        try:
            b = next(iter(texts.stream(**opts))); print("OK  ", opts, {k: getattr(v, "shape", type(v)) for k, v in b.items()})
        except Exception as e:
            print("ERR ", opts, type(e).__name__, str(e)[:300])

def test_multi(db, texts):
    for b in itertools.islice(texts.stream(batch_size=2, pack=64, length="tokens", passes=1, shuffle=True), 500):
        assert np.array_equal(b["tokens_segments"], b["mask_segments"]) and ((b["mask"] == 1) == (b["mask_segments"] > 0)).all()
    with db.data.writer("mis", schema={"a": Array("int32", (None,)), "b": Array("int32", (None,))}) as w:
        w.add(a=np.arange(3, dtype=np.int32), b=np.arange(4, dtype=np.int32))
    for o in ({"length": "a"}, {"length": "b"}, {"length": "a", "fields": ["a"]}):
        try: print(next(iter(db.data.find({"dataset": "mis"}).stream(batch_size=2, pack=64, **o))))
        except Exception as e: print(type(e).__name__, e)

def test_short_of_index(db):
    "the index says fewer than the sample has, or more"
    for delta in (-1, 1):
        with db.data.writer(f"d{delta+1}", schema={"a": Array("int32", (None,)), "n": int}) as w:
            for k in range(1, 9): w.add(a=np.arange(k, dtype=np.int32), n=k + delta)
        for long in ("error", "cut", "split", "drop"):
            for pack in (4, 10):
                try:
                    bs = list(db.data.find({"dataset": f"d{delta+1}"}).stream(batch_size=2, pack=pack, length="n", long=long, passes=1))
                    print(delta, long, pack, sorted(x for b in bs for x in np.diff(b["cu_seqlens"]).tolist()), sum(int((b["a_segments"]>0).sum()) for b in bs))
                except Exception as e: print(delta, long, pack, type(e).__name__, str(e)[:160])
        sel = db.data.find({"dataset": f"d{delta+1}"})
        print("tokens", delta, max(b["a"].size for b in sel.stream(batch_tokens=9, length="n", passes=1, ragged="pad")))
