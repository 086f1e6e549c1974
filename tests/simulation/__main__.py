"""As long as you like:

    python -m tests.simulation                      # a thousand seeds
    python -m tests.simulation --first 4711 --seeds 1
"""

import argparse
import sys
import tempfile

from tests.simulation.world import World, quiet_folder


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run a fluentd output in simulated worlds, one for each seed.")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    args = parser.parse_args()
    bad = kills = stops = turns = beside = 0
    for seed in range(args.first, args.first + args.seeds):
        with tempfile.TemporaryDirectory(prefix="simulation-", dir=quiet_folder()) as folder:
            world = World(seed, folder)
            try:
                world.run()
            except AssertionError as error:
                bad += 1
                print(*error.args, sep="\n", end="\n\n", flush=True)
            kills, stops, turns = kills + world.kills, stops + world.stops, turns + world.turns
            beside += world.beside
    print(f"{args.seeds} worlds, {bad} bad; {kills} kills, {stops} ends, {turns} turns; "
          f"{beside} events went ahead of a backlog")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
