"""A warehouse of the mongod of the tests, brought to 7.0 and 8.0 by real ones: MONGOD7 and MONGOD8 name them.

make upgrade MONGOD7=/opt/mongodb-7.0/bin/mongod MONGOD8=/opt/mongodb-8.0/bin/mongod
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tensordb_data import TensorDB
from tensordb_data.embedded.paths import locate


def main() -> int:
    mongods = [os.environ.get(name, "") for name in ("MONGOD7", "MONGOD8")]
    if not all(mongods):
        print("upgrade: nothing was run; it needs MONGOD7=/path/to/mongod and MONGOD8=/path/to/mongod")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="tdbg"))
    try:
        with TensorDB(folder / "w") as db:
            with db.data.writer("d") as writer:
                writer.add_many(x=np.arange(400.0).reshape(100, 4), label=np.arange(100))
            db.params.save({"w": np.ones(100)}, run="r", step=1)
        command = [sys.executable, "-m", "tensordb_data.cli.main", "upgrade", "--db", str(folder / "w")]
        subprocess.run([*command, *(part for mongod in mongods for part in ("--mongod", mongod))], check=True)
        os.environ["TENSORDB_MONGOD"] = mongods[1]
        with TensorDB(folder / "w") as db:
            assert locate(folder / "w").release() == "8.0"
            assert db.data.find({"dataset": "d"}).count() == 100 and db.fsck().findings == []
            with db.data.writer("d") as writer:
                writer.add(x=np.zeros(4), label=100)
            assert db.params.find({"run": "r"}).first().load()["w"].sum() == 100
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("upgrade: from the release of the tests to 7.0 and 8.0, with real servers; everything is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
