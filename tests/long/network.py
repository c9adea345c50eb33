"""A bad network between the clients and the server of a warehouse, while everything goes on; see `account.py`.

    make network                                                # 100 rounds
    .venv/bin/python tests/long/network.py --rounds 7 --seed 3      # as the tests run it

In each round the network does one of these, and is whole again: it resets all connections, in the middle of an answer
or not; ends one direction of them; lets vanish what they send, and nobody hears of it; holds everything back, or slows
it down; refuses connections.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.proxy import Proxy
from tests.long.account import account_for
from tests.mongod import Mongod, started

FAULTS = ("cut", "tear", "half-close", "lose", "pause", "delay", "refuse")


def strike(network: Proxy, fault: str, dice: random.Random) -> None:
    """Let the network fail, and make it whole again."""
    seconds = dice.uniform(0.1, 1.5)
    match fault:
        case "cut":
            network.cut()
        case "tear":
            network.tear()
        case "half-close":
            network.half_close(client=dice.random() < 0.5)
        case "lose":
            network.lose()
        case "pause":
            network.pause()
        case "delay":
            network.delay(dice.uniform(0.02, 0.3))
        case "refuse":
            network.refuse()
    time.sleep(seconds)
    network.serve()
    network.flow()


def run(rounds: int, seed: int, folder: Path, tell: Callable[[str], object] = print) -> list[str]:
    """Some rounds; what is wrong at the end."""
    dice, server = random.Random(seed), Mongod(folder)
    with Proxy(server.port) as network:
        server.host = f"127.0.0.1:{network.port}"
        uri = f"mongodb://{server.host}/tdb?replicaSet=rs&heartbeatFrequencyMS=500&connectTimeoutMS=1000"
        kinds = [FAULTS[number % len(FAULTS)] for number in range(rounds)]
        with started(server):
            faults = [(kind, partial(strike, network, kind, dice)) for kind in kinds]
            return account_for(uri, f"file://{folder}/blobs", faults, tell)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(options.rounds, options.seed, Path(folder), lambda text: print(text, flush=True))
    print("\n".join(wrong) or f"{options.rounds} rounds: nothing lost, nothing twice")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
